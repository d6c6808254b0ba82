"""The amx engine: the conformance suite, real texts, which models it takes, how it is chosen and refused."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conformance import CHECKS, REFERENCES, check_references, embed
from tiny import TEXTS, Tiny

from embatch.engine import amx, folder, models
from embatch.engine.amx import library, reference
from embatch.engine.amx.engine import AGREEMENT
from embatch.engine.loading import choose, load
from embatch.engine.machine import has_amx
from embatch.engine.protocol import EngineSpec, RowsRefused, Shape
from embatch.errors import EngineTrouble, InvalidArgument
from embatch.vectors import cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from embatch.engine.protocol import Engine

pytest_plugins = ("kernel_fixtures",)

FIT = Tiny(heads=2, positions=600, max_tokens=512)
"""A model the kernel takes."""
VARIANTS = {
    "minilm": FIT,
    "bge": FIT.but(poolings=("cls",), prefix="bert.", prompts={"query": "find: "}),
    "e5": FIT.but(hidden=128, heads=2, prompts={"query": "query: ", "document": "passage: "}),
    "gte": FIT.but(hidden=96, heads=3, inner=192, layers=3, stored="F16"),
    "bfloat16": FIT.but(stored="BF16"),
    "not normalised": FIT.but(normalize=False),
    "first years": FIT.but(gamma=True, prefix="bert."),
    "xlm-roberta": FIT.but(family="xlm-roberta", prefix="roberta.", max_tokens=None, positions=30),
}
OTHERS = {
    "the activation function 'gelu_new'": FIT.but(activation="gelu_new"),
    "the pooling max": FIT.but(poolings=("max",)),
    "the pooling cls+mean": FIT.but(poolings=("cls", "mean")),
    "texts of more than 512 tokens": FIT.but(max_tokens=600),
    "heads of 16 columns": FIT.but(heads=4),
    "48 dimensions": FIT.but(hidden=48, heads=1),
    "1056 dimensions": FIT.but(hidden=1056, heads=33, inner=32, layers=1),
    "100 columns between its products": FIT.but(inner=100),
    "relative positions": FIT.but(extra={"position_embedding_type": "relative_key"}),
    "the architecture 'mpnet'": FIT.but(family="mpnet"),
}


@pytest.fixture(scope="module", params=["minilm", "tiny"])
def engine(
    request: pytest.FixtureRequest, kernel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """One engine after another, loaded once."""
    if request.param == "minilm":
        spec = models.serve_model(models.DEFAULT_MODEL, engine="amx", threads=2).spec
    else:
        spec = EngineSpec("amx", str(FIT.write(tmp_path_factory.mktemp("tiny"))), threads=2)
    loaded = load(spec)
    loaded.warm()
    yield loaded
    loaded.close()


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(engine: Engine, check: Callable[[Engine, float], None]) -> None:
    """It passes each check of every engine, as near to float32 as is asked of none in bfloat16."""
    check(engine, 0.9999)


def test_batch_invariance(engine: Engine) -> None:
    """Alone, in any company, in any shape, on one thread or two: the same bytes."""
    assert engine.describe().invariant
    lines = (REFERENCES / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:40]]
    together = embed(engine, texts)
    assert embed(engine, texts[::-1])[::-1].tobytes() == together.tobytes()
    for place in range(0, len(texts), 7):
        assert embed(engine, [texts[place]]).tobytes() == together[place].tobytes()
        company = embed(engine, [*texts[:place], "something else", *texts[place:]])
        assert company[place + 1].tobytes() == together[place].tobytes()
    one = load(EngineSpec("amx", engine.describe().model, threads=1))
    assert one.describe().identity == engine.describe().identity
    assert embed(one, texts).tobytes() == together.tobytes()
    one.close()


def test_real_texts(kernel: Path) -> None:
    """Real passages of the default model are at 0.9999 and above of float32."""
    loaded = load(models.serve_model(models.DEFAULT_MODEL, engine="amx").spec)
    lines = (REFERENCES / "texts.jsonl").read_text(encoding="utf-8").splitlines()[::12]
    vectors = embed(loaded, [json.loads(line)["text"] for line in lines])
    assert cosine(vectors, np.load(REFERENCES / "vectors.npy")[::12]).min() >= 0.9999
    loaded.close()


@pytest.mark.long
def test_all_references(kernel: Path) -> None:
    """The same of every reference text."""
    loaded = load(models.serve_model(models.DEFAULT_MODEL, engine="amx").spec)
    check_references(loaded, 0.9999)
    loaded.close()


@pytest.mark.long
def test_every_length_of_the_default_model(kernel: Path) -> None:
    """A real text cut at every length from 1 to 512 is as OpenVINO has it in float32."""
    whole_table = {"max_tokens": str(library.BLOCK)}  # it was trained with 256
    ours = load(models.serve_model(models.DEFAULT_MODEL, engine="amx", options=whole_table).spec)
    theirs = load(
        models.serve_model(models.DEFAULT_MODEL, engine="openvino", precision="f32", options=whole_table).spec
    )
    lines = (REFERENCES / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    (whole,) = ours.encode([" ".join(json.loads(line)["text"] for line in lines)]).rows
    rows = [np.array([*whole[: length - 1], whole[-1]], np.int32) for length in range(1, len(whole) + 1)]
    assert len(rows) == ours.describe().max_tokens == library.BLOCK
    found = ours.forward(rows, Shape(len(rows), len(whole)))
    for place, row in enumerate(rows):
        expected = theirs.forward([row], Shape(1, len(row)))
        assert cosine(found[place], expected[0]) >= 0.9999
    ours.close()
    theirs.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(kernel: Path, tmp_path: Path, name: str) -> None:
    """Every variant of the architecture gives the vectors of an independent implementation in float64."""
    tiny = VARIANTS[name]
    loaded = choose(EngineSpec("auto", str(tiny.write(tmp_path)), threads=1))
    about = loaded.engine.describe()
    assert (about.engine, loaded.passed_over) == ("amx", {})
    assert about.normalized == tiny.normalize
    expected = np.array([tiny.embed(text) for text in TEXTS])
    vectors = embed(loaded.engine, TEXTS)
    assert cosine(vectors, expected.astype(np.float32)).min() >= 0.9995
    np.testing.assert_allclose(vectors, expected, atol=0.05)
    loaded.engine.close()


@pytest.mark.parametrize("problem", OTHERS)
def test_models_it_does_not_take(kernel: Path, tmp_path: Path, problem: str) -> None:
    """It says what of the model it does not compute, and `auto` says so too when OpenVINO serves."""
    path = OTHERS[problem].write(tmp_path)
    with pytest.raises(InvalidArgument, match="the amx engine cannot run this model") as refused:
        load(EngineSpec("amx", str(path)))
    assert problem in refused.value.message
    if "mpnet" in problem or "relative" in problem:  # nor does OpenVINO
        return
    loaded = choose(EngineSpec("auto", str(path)))
    assert loaded.engine.describe().engine == "openvino"
    assert loaded.passed_over == {"amx": problem}
    loaded.engine.close()


def test_a_folder_without_safetensors(kernel: Path, tmp_path: Path) -> None:
    """An ONNX export alone is OpenVINO's."""
    path = FIT.write(tmp_path)
    (path / "model.safetensors").rename(path / "model.onnx")
    assert "model.safetensors" in str(amx.unsupported(folder.read(path)))


def test_affinity_is_for_the_kernel_alone(kernel: Path, tmp_path: Path) -> None:
    """It stands in no one's way where another engine has to serve; who names that engine is told."""
    path, wished = str(FIT.write(tmp_path)), {"affinity": "cores"}
    loaded = choose(EngineSpec("auto", path, precision="f32", options=wished))
    assert loaded.engine.describe().engine == "openvino"
    loaded.engine.close()
    with pytest.raises(InvalidArgument, match="no option affinity"):
        load(EngineSpec("openvino", path, options=wished))


def test_another_precision_is_another_engine(kernel: Path, tmp_path: Path) -> None:
    """Who asks for float32 gets OpenVINO, or an error where the kernel was named."""
    path = str(FIT.write(tmp_path))
    loaded = choose(EngineSpec("auto", path, precision="f32"))
    assert (loaded.engine.describe().engine, loaded.engine.describe().precision) == ("openvino", "f32")
    assert loaded.passed_over == {"amx": "it computes in bf16 only"}
    loaded.engine.close()
    with pytest.raises(InvalidArgument, match="bf16 only"):
        load(EngineSpec("amx", path, precision="f32"))
    with pytest.raises(InvalidArgument, match="no option speed"):
        load(EngineSpec("amx", path, options={"speed": "9"}))


def test_streams_that_keep_to_a_core(kernel: Path, tmp_path: Path) -> None:
    """With `affinity=cores` whoever forwards stays on one core, and no other thread does."""
    path = str(FIT.write(tmp_path))
    loaded = load(EngineSpec("amx", path, threads=2, options={"affinity": "cores"}))
    rows, everywhere = loaded.encode(["a", "b c"]).rows, os.sched_getaffinity(0)

    def forward() -> tuple[bytes, set[int]]:
        return loaded.forward(rows, Shape(2, 64)).tobytes(), os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as thread:
        vectors, bound = thread.submit(forward).result()
    assert len(bound) == 1
    assert os.sched_getaffinity(0) == everywhere
    loaded.close()
    free = load(EngineSpec("amx", path))
    assert free.forward(rows, Shape(2, 64)).tobytes() == vectors
    assert os.sched_getaffinity(0) == everywhere
    free.close()
    with pytest.raises(InvalidArgument, match="affinity must be none or cores"):
        load(EngineSpec("amx", path, options={"affinity": "1"}))


def test_vectors_are_told_from_openvinos(kernel: Path, tmp_path: Path) -> None:
    """The identity, under which vectors are kept, is another one than OpenVINO's on the same folder."""
    path = str(FIT.write(tmp_path))
    found = set()
    for spec in (EngineSpec("amx", path), EngineSpec("openvino", path, precision="f32")):
        loaded = load(spec)
        found.add(loaded.describe().identity)
        loaded.close()
    assert len(found) == 2


def test_switched_off(kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`EMBATCH_AMX=off` is OpenVINO's path, and naming the engine then is an error that says so."""
    path = str(FIT.write(tmp_path))
    monkeypatch.setenv(library.SWITCH, "off")
    loaded = choose(EngineSpec("auto", path))
    assert loaded.engine.describe().engine == "openvino"
    assert loaded.passed_over == {"amx": "switched off by EMBATCH_AMX=off"}
    loaded.engine.close()
    with pytest.raises(InvalidArgument, match="EMBATCH_AMX=off"):
        load(EngineSpec("amx", path))
    monkeypatch.setenv(library.SWITCH, "maybe")
    with pytest.raises(InvalidArgument, match="must be auto or off"):
        choose(EngineSpec("auto", path))


def test_what_stands_where_the_library_should(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, another file, another library: OpenVINO serves, and the reason is said."""
    path = str(FIT.write(tmp_path / "model"))
    cases: Mapping[str, bytes] = {"absent.so": b"", "text.so": b"no library"}
    reasons = []
    for name, content in cases.items():
        if content:
            (tmp_path / name).write_bytes(content)
        monkeypatch.setenv(library.ELSEWHERE, str(tmp_path / name))
        loaded = choose(EngineSpec("auto", path))
        reasons.append(loaded.passed_over["amx"])
        assert loaded.engine.describe().engine == "openvino"
        loaded.engine.close()
    assert ("not part of this installation" if has_amx() else "no AMX") in reasons[0]
    assert "is not the library of the kernel" in reasons[1]


def test_a_library_of_another_version(stand_in: Callable[[int, int], Path]) -> None:
    """It is never called: its functions may take other things."""
    with pytest.raises(InvalidArgument, match="another version"):
        library.Library(stand_in(2, 0))


@pytest.mark.parametrize(("code", "reason"), [(1, "no AMX"), (2, "hypervisor"), (3, "operating system")])
def test_a_machine_that_refuses(
    stand_in: Callable[[int, int], Path], monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    """What the detection answers becomes words."""
    monkeypatch.setenv(library.ELSEWHERE, str(stand_in(1, code)))
    assert reason in str(amx.unavailable())


def test_a_kernel_that_differs_is_refused(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector unlike float32's on load: nothing is served with the kernel, OpenVINO takes the model."""
    right = library.PackedModel.forward

    def wrong(model: library.PackedModel, rows: list[np.ndarray]) -> np.ndarray:
        vectors = right(model, rows)
        vectors[-1] = np.roll(vectors[-1], 1)
        return vectors

    path = str(FIT.write(tmp_path))
    monkeypatch.setattr(library.PackedModel, "forward", wrong)
    with pytest.raises(amx.Unfit, match="differ from those in float32: least cosine"):
        load(EngineSpec("amx", path))
    loaded = choose(EngineSpec("auto", path))
    assert loaded.engine.describe().engine == "openvino"
    assert "differ from those in float32" in loaded.passed_over["amx"]
    loaded.engine.close()


def test_a_kernel_that_depends_on_company_is_refused(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bit is enough: what is promised of every plan is looked at on every load."""
    right = library.PackedModel.forward

    def wrong(model: library.PackedModel, rows: list[np.ndarray]) -> np.ndarray:
        vectors = right(model, rows)
        return np.nextafter(vectors, 1) if len(rows) == 1 else vectors

    monkeypatch.setattr(library.PackedModel, "forward", wrong)
    with pytest.raises(amx.Unfit, match="other bytes in company"):
        load(EngineSpec("amx", str(FIT.write(tmp_path))))


class Spoilt(Tiny):
    """A model with one weight that is no number."""

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the weights."""
        found = super().tensors()
        found["encoder.layer.1.output.dense.weight"][3, 5] = np.nan
        return found


def test_weights_that_are_no_numbers(kernel: Path, tmp_path: Path) -> None:
    """A damaged model is an error for `auto` too: no other engine would make it better."""
    path = str(Spoilt(heads=2).write(tmp_path))
    for engine in ("amx", "auto"):
        with pytest.raises(InvalidArgument, match="infinite or not a number"):
            load(EngineSpec(engine, path))


def test_a_model_with_too_few_positions(kernel: Path, tmp_path: Path) -> None:
    """A position table shorter than the texts it is said to take is an error when the model is loaded."""
    tiny = FIT.but(positions=20, max_tokens=20, extra={"max_position_embeddings": 40})
    path = tiny.but(max_tokens=40).write(tmp_path)
    with pytest.raises(InvalidArgument, match="positions for 20 tokens, not for 40"):
        load(EngineSpec("amx", str(path)))


def test_rows_it_refuses(kernel: Path, tmp_path: Path) -> None:
    """Rows that do not fit their shape are the planner's fault, tokens of another model the row's."""
    loaded = load(EngineSpec("amx", str(FIT.write(tmp_path))))
    row = np.ones(4, np.int32)
    for rows, shape in (([row, row], Shape(1, 4)), ([row], Shape(1, 3))):
        with pytest.raises(InvalidArgument, match="planned shape"):
            loaded.forward(rows, shape)
    with pytest.raises(InvalidArgument, match="token ids"):
        loaded.forward(["a"], Shape(1, 4))
    with pytest.raises(RowsRefused, match="not of this model"):
        loaded.forward([np.array([10_000], np.int32)], Shape(1, 1))
    loaded.close()
    loaded.close()
    with pytest.raises(EngineTrouble, match="closed"):
        loaded.forward([row], Shape(1, 4))


def test_the_reference_is_what_openvino_computes(tmp_path: Path, kernel: Path) -> None:
    """What the kernel is verified with is right: the default model's vectors to six digits."""
    described = models.opened(models.serve_model(models.DEFAULT_MODEL).spec)
    form, tensors = amx.engine.packed_form(described)
    other = load(models.serve_model(models.DEFAULT_MODEL, engine="openvino", precision="f32").spec)
    rows = other.encode(TEXTS).rows
    for row in rows:
        assert not isinstance(row, str)
        found = reference.vector(form, tensors, row)
        np.testing.assert_allclose(found, other.forward([row], Shape(1, len(row)))[0], atol=2e-6)
    cls = reference.vector(replace(form, cls=True), tensors, rows[0])  # type: ignore[arg-type]
    assert cosine(cls, found) < AGREEMENT
    other.close()
