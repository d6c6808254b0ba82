"""Names, aliases, where weights are found, and what is said when they are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Tiny

from embatch.engine import models
from embatch.engine.loading import load
from embatch.engine.models import DEFAULT_MODEL, PINNED, Catalog, ServedModel, serve_model
from embatch.engine.protocol import EngineSpec, Shape
from embatch.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound


def served(name: str) -> ServedModel:
    """Return a model that needs no files."""
    return ServedModel(name, EngineSpec("hashing", name))


def test_names_in_full_in_short_and_by_alias() -> None:
    """With `models/` or without; an alias as good as a name; none means the first."""
    a, b = served("org/alpha"), served("beta")
    catalog = Catalog([a, b], {"gemini-embedding-001": "alpha", "models/text-embedding-004": "models/beta"})
    assert catalog.default is a
    assert list(catalog) == [a, b]
    for name in (
        None,
        "org/alpha",
        "models/org/alpha",
        "alpha",
        "models/alpha",
        "models/gemini-embedding-001",
    ):
        assert catalog.resolve(name) is a
    for name in ("beta", "models/text-embedding-004"):
        assert catalog.resolve(name) is b


def test_an_unknown_name_is_told_what_there_is() -> None:
    """The message names the models and the flag, and does not repeat what was asked."""
    catalog = Catalog([served("org/alpha"), served("beta")])
    for name in ("gemini-embedding-001", "../../etc/passwd", "https://host/x", "", "x" * 10_000):
        with pytest.raises(NotFound, match=r"served: org/alpha, beta.*--alias NAME=org/alpha") as caught:
            catalog.resolve(name)
        assert caught.value.reason == "MODEL_NOT_FOUND"
        assert len(caught.value.message) < 300


def test_short_names_only_where_they_mean_one_model() -> None:
    """Two organisations' models of one name are told apart by full name only."""
    catalog = Catalog([served("one/alpha"), served("two/alpha")])
    assert catalog.resolve("two/alpha").name == "two/alpha"
    with pytest.raises(NotFound):
        catalog.resolve("alpha")


def test_a_catalog_that_makes_no_sense_is_refused() -> None:
    """No model, one name twice, an alias to nothing, to another alias, or over another model."""
    a, b = served("alpha"), served("beta")
    with pytest.raises(InvalidArgument):
        Catalog([])
    with pytest.raises(AlreadyExists):
        Catalog([a, served("alpha")])
    with pytest.raises(NotFound):
        Catalog([a], {"x": "gamma"})
    with pytest.raises(NotFound):
        Catalog([a], {"x": "alpha", "y": "x"})
    with pytest.raises(AlreadyExists):
        Catalog([a, b], {"beta": "alpha"})
    with pytest.raises(InvalidArgument):
        Catalog([a], {"no spaces": "alpha"})


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "all-MiniLM-L6-v2"])
def test_the_default_model_from_the_installed_package(name: str) -> None:
    """Found without importing the package, known before it is loaded, pinned."""
    model = serve_model(name)
    assert (model.name, model.dimensions, model.max_tokens, model.prompts) == (DEFAULT_MODEL, 384, 256, {})
    assert model.spec.options["pinned"] == DEFAULT_MODEL
    assert PINNED[DEFAULT_MODEL].package not in sys.modules


def test_every_file_that_is_used_is_pinned(tmp_path: Path) -> None:
    """A folder of exactly the pinned files serves the model; nothing unverified was ever needed."""
    source = Path(serve_model(DEFAULT_MODEL).spec.model)
    for name in PINNED[DEFAULT_MODEL].files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source / name, tmp_path / name)
    here, there = load(serve_model(str(tmp_path)).spec), load(serve_model(DEFAULT_MODEL).spec)
    assert here.describe().identity == there.describe().identity
    row = here.encode(["the same"]).rows
    assert here.forward(row, Shape(1, 16)).tobytes() == there.forward(row, Shape(1, 16)).tobytes()


@pytest.mark.parametrize("name", sorted(PINNED[DEFAULT_MODEL].files))
def test_a_changed_file_of_a_pinned_model_is_never_loaded(tmp_path: Path, name: str) -> None:
    """One flipped bit, in any file, is found when the service starts and when an engine loads."""
    source = Path(serve_model(DEFAULT_MODEL).spec.model)
    for file in PINNED[DEFAULT_MODEL].files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).symlink_to(source / file)
    models.verify(tmp_path, PINNED[DEFAULT_MODEL])
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataLoss, match=name):
        load(EngineSpec("openvino", str(tmp_path), options={"pinned": DEFAULT_MODEL}))
    (tmp_path / name).unlink()
    with pytest.raises(DataLoss, match="missing"):
        models.verify(tmp_path, PINNED[DEFAULT_MODEL])


def test_a_folder_is_served_under_its_own_name(tmp_path: Path) -> None:
    """The name is the folder's, made fit for a URL."""
    path = Tiny(prompts={"query": "q: "}).write(tmp_path / "my model (v2)")
    model = serve_model(str(path), engine="openvino", threads=1)
    assert (model.name, model.dimensions, model.max_tokens) == ("my-model--v2-", 64, 32)
    assert model.prompts["RETRIEVAL_QUERY"] == "q: "
    assert model.spec == EngineSpec("openvino", str(path), "auto", 1)
    assert load(model.spec).describe().engine == "openvino"


def test_engines_without_files() -> None:
    """Engines hashing and remote take any name; what only the endpoint knows is left open."""
    model = serve_model("models/any", engine="hashing", options={"dimensions": "12"})
    assert (model.name, model.spec.model, model.dimensions, model.max_tokens) == ("any", "any", 12, 512)
    remote = serve_model("org/m", engine="remote", url="http://127.0.0.1:1/v1")
    assert (remote.name, remote.dimensions, remote.max_tokens) == ("org/m", None, None)
    with pytest.raises(InvalidArgument, match="engine-url"):
        serve_model("org/m", engine="remote")
    for engine in ("hashing", "remote"):
        with pytest.raises(InvalidArgument):
            serve_model("no spaces", engine=engine, url="http://127.0.0.1:1/v1")


def test_wrong_arguments_are_named() -> None:
    """Engine, precision, options and folders that are not there."""
    with pytest.raises(InvalidArgument, match="engine must be"):
        serve_model(DEFAULT_MODEL, engine="magic")
    with pytest.raises(InvalidArgument, match="pinned is set"):
        serve_model(DEFAULT_MODEL, options={"pinned": DEFAULT_MODEL})
    with pytest.raises(InvalidArgument, match="no option colour"):
        load(serve_model(DEFAULT_MODEL, engine="openvino", options={"colour": "red"}).spec)
    for reference in ("/no/such/folder", "./neither", "../../up", "~/nor/this"):
        with pytest.raises(NotFound, match="no folder"):
            serve_model(reference)


def test_auto_says_what_is_missing_where_openvino_cannot(tmp_path: Path) -> None:
    """The message names the reason and, if torch is not there, how to get it."""
    path = Tiny(extra={"model_type": "mpnet"}).write(tmp_path)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from embatch.engine.loading import load\n"
        "from embatch.engine.protocol import EngineSpec\n"
        f"load(EngineSpec('auto', {str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "mpnet" in done.stderr
    assert 'pip install "embatch[torch]"' in done.stderr


def test_unknown_engines_are_refused_on_loading() -> None:
    """A spec from elsewhere is not trusted."""
    with pytest.raises(InvalidArgument, match="engine must be"):
        load(EngineSpec("os", "system"))
