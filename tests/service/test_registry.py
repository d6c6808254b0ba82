"""Models that clients ask for: named for good, found again after a restart, fetched while somebody waits."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
from hub_stand_in import Hub, serving_hub
from tiny import Tiny, write

from embatch.engine.models import Catalog, serve_model
from embatch.engine.references import ModelReference
from embatch.errors import DataLoss, EmbatchError, InvalidArgument, NotFound, Unavailable
from embatch.service.registry import ASKED_SECONDS, WANTED_SECONDS, Registry
from embatch.store.model_names import ModelNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.engine.models import ServedModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = serve_model("base", engine="hashing")


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Served:
    """One data folder, and the registry of the service that runs on it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        data.mkdir(mode=0o700, exist_ok=True)
        self.wall, self.steady = Clock(), Clock()
        self.renewed: list[str] = []
        self.start()

    def start(self, *named: str) -> None:
        """Start a service whose batches have these models."""
        self.catalog = Catalog([BASE])
        self.registry = Registry(
            self.catalog, ModelNames(self.data), self._renew, now=self.wall, monotonic=self.steady
        )
        self.registry.restore(named)

    def _renew(self, model: ServedModel) -> None:
        self.renewed.append(model.name)

    def ask(self, reference: ModelReference) -> str:
        """Ask until the model is served, as a client does; return its name."""
        deadline = time.monotonic() + 60
        while (serving := self.registry.serve(reference)).name is None:
            assert time.monotonic() < deadline, "the fetch does not end"
            time.sleep(0.02)  # a client asks again after a while too: nothing tells it
        return serving.name

    def folder(self, path: Path) -> str:
        """Ask for a folder; return its name."""
        return self.ask(ModelReference(str(path)))

    @property
    def names(self) -> list[str]:
        """What is served beside the default model."""
        return [model.name for model in self.catalog if model.name != "base"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A service without models of its own but one."""
    served = Served(tmp_path / "data")
    yield served
    served.registry.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve `org/tiny` and `org/other`, and let processes started from here find it."""
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    tiny, other = Tiny().write(tmp_path / "tiny"), Tiny(hidden=32).write(tmp_path / "other")
    with serving_hub(org__tiny=(COMMIT, tiny), org__other=(COMMIT, other)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield hub


def test_two_folders_of_one_name_are_two_models(served: Served, tmp_path: Path) -> None:
    """Each has a name of its own, the same whenever it is asked for, and the same after a restart."""
    one, two = (Tiny(hidden=size).write(tmp_path / at / "final") for at, size in (("a", 64), ("b", 32)))
    first, second = served.folder(one), served.folder(two)
    assert first != second
    assert all(name.startswith("final-") for name in (first, second))
    assert [served.catalog.resolve(name).dimensions for name in (first, second)] == [64, 32]
    (tmp_path / "link").symlink_to(one)
    assert (served.folder(one), served.folder(tmp_path / "link")) == (first, first)
    served.start(first, second)
    assert served.names == [first, second]
    assert served.folder(two) == second


def test_one_folder_computed_in_two_ways_is_two_models(served: Served, tmp_path: Path) -> None:
    """Engine, precision and options are a part of what a name stands for."""
    path = str(Tiny(prompts={"query": "q: "}).write(tmp_path / "final"))
    ways = [
        ModelReference(path),
        ModelReference(path, engine="openvino"),
        ModelReference(path, precision="f32"),
        ModelReference(path, options={"prompt.RETRIEVAL_QUERY": "ask: "}),
    ]
    names = [served.ask(way) for way in ways]
    assert len(set(names)) == len(ways)
    specs = [served.catalog.resolve(name).spec for name in names]
    assert [spec.engine for spec in specs] == ["auto", "openvino", "auto", "auto"]
    assert [spec.precision for spec in specs] == ["auto", "auto", "f32", "auto"]
    assert served.catalog.resolve(names[3]).prompts["RETRIEVAL_QUERY"] == "ask: "


def test_what_is_served_already_is_meant_by_its_name(served: Served, tmp_path: Path) -> None:
    """As it is written, and nothing is looked for."""
    name = served.folder(Tiny().write(tmp_path / "final"))
    for asked in ("base", name):
        assert served.ask(ModelReference(name=asked)) == asked
    assert served.names == [name]


def test_a_name_stays_as_long_as_a_batch_has_it(served: Served, tmp_path: Path) -> None:
    """Without one it stays for a day after it was last asked for: somebody may be about to submit."""
    kept, forgotten, asked = (served.folder(Tiny().write(tmp_path / name)) for name in "abc")
    served.wall.now += ASKED_SECONDS - 10
    served.folder(tmp_path / "c")
    served.start()
    assert served.names == [kept, forgotten, asked]
    served.wall.now += 20
    served.start(kept)
    assert served.names == [kept, asked]
    served.start(kept, forgotten)
    assert served.names == [kept, asked], "what a name stood for is forgotten with it"


def test_a_folder_that_is_gone_says_so_and_is_found_again(served: Served, tmp_path: Path) -> None:
    """Batches wait for it meanwhile: the error is what they show."""
    path = Tiny().write(tmp_path / "final")
    name = served.folder(path)
    path.rename(tmp_path / "away")
    served.start(name)
    with pytest.raises(NotFound, match=f"{name} cannot be served just now: there is no folder .*final"):
        served.catalog.resolve(name)
    served.registry.sweep()
    with pytest.raises(NotFound, match="there is no folder"):
        served.folder(path)
    with pytest.raises(NotFound, match=f"{name} cannot be served just now"):
        served.ask(ModelReference(name=name))
    (tmp_path / "away").rename(path)
    served.registry.sweep()
    assert served.catalog.resolve(name).dimensions == 64
    assert served.renewed == []


def test_a_folder_that_has_changed_is_loaded_anew(served: Served, tmp_path: Path) -> None:
    """Trained again under the same path: its name stays, what is known of it changes, engines are renewed."""
    path = Tiny().write(tmp_path / "final")
    name = served.folder(path)
    assert served.folder(path) == name
    assert served.renewed == []
    shutil.rmtree(path)
    Tiny(hidden=32).write(path)
    assert served.folder(path) == name
    assert served.renewed == [name]
    assert served.catalog.resolve(name).dimensions == 32
    assert served.names == [name]


@pytest.mark.parametrize(
    ("reference", "kind", "field", "words"),
    [
        (ModelReference("final"), InvalidArgument, "model", "whole path"),
        (ModelReference(__file__), NotFound, "model", "is a file, and a model is a folder"),
        (ModelReference("/nowhere/at/all"), NotFound, "model", "there is no folder /nowhere/at/all"),
        (ModelReference("/", engine="fast"), InvalidArgument, "engine", "engine must be one of"),
        (ModelReference("/", precision="int3"), InvalidArgument, "precision", "precision must be one of"),
        (ModelReference("/", revision="v1"), InvalidArgument, "engine-option", "no revision"),
        (ModelReference("/", engine="hashing"), InvalidArgument, "engine", "reads no folder"),
        (
            ModelReference(name="m", engine="remote"),
            InvalidArgument,
            "engine",
            "embatch serve --engine remote",
        ),
        (ModelReference("/", options={"poling": "cls"}), InvalidArgument, "engine-option", "'poling'"),
        (ModelReference("/", options={"pinned": "x"}), InvalidArgument, "engine-option", "'pinned'"),
        (ModelReference(name="../x"), NotFound, "model", "no model can have this name"),
        (ModelReference(name="a b"), NotFound, "model", "no model can have this name"),
    ],
)
def test_what_cannot_be_is_refused(
    served: Served, reference: ModelReference, kind: type[EmbatchError], field: str, words: str
) -> None:
    """Each error names its field; nothing is served and nothing is kept."""
    with pytest.raises(kind, match=words) as refused:
        served.registry.serve(reference)
    assert refused.value.field == field
    assert served.names == []
    assert not (served.data / "models.json").exists()


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"version": 2, "models": {}}', b'{"version":1,"models":{"x":{}}}']
)
def test_a_damaged_file_of_names_keeps_the_service_from_starting(served: Served, content: bytes) -> None:
    """Batches would wait for models that nobody knows any more."""
    (served.data / "models.json").write_bytes(content)
    with pytest.raises(DataLoss, match=r"models\.json"):
        served.start()


def test_a_name_that_cannot_be_kept_is_not_given(served: Served, tmp_path: Path) -> None:
    """Whoever heard it might submit, and a restart would not know it."""
    path = Tiny().write(tmp_path / "final")
    (served.data / "models.json").mkdir()
    with pytest.raises(Unavailable, match="cannot be written"):
        served.folder(path)
    assert served.names == []
    (served.data / "models.json").rmdir()
    name = served.folder(path)
    assert served.names == [name]


def test_a_disk_without_room_keeps_nobody_from_what_is_served(served: Served, tmp_path: Path) -> None:
    """When a name was last asked for, and that another one is forgotten, can be written later."""
    path = Tiny().write(tmp_path / "final")
    name, other = served.folder(path), served.folder(Tiny().write(tmp_path / "other"))
    written = (served.data / "models.json").read_bytes()
    (served.data / "models.json.new").mkdir()  # in the way of all that is written
    served.wall.now += ASKED_SECONDS + 1
    assert served.folder(path) == name
    served.start(name)
    assert served.names == [name]
    with pytest.raises(Unavailable):
        served.folder(tmp_path / "other")
    assert (served.data / "models.json").read_bytes() == written
    (served.data / "models.json.new").rmdir()
    assert served.folder(tmp_path / "other") == other


def test_a_link_that_leads_nowhere_is_no_trouble(served: Served, tmp_path: Path) -> None:
    """Beside the files of a model there may be anything."""
    path = Tiny().write(tmp_path / "final")
    (path / "notes.json").symlink_to(tmp_path / "nowhere")
    name = served.folder(path)
    assert served.folder(path) == name
    assert served.renewed == []


def test_a_hub_name_is_fetched_and_its_commit_counts_from_then_on(served: Served, hub: Hub) -> None:
    """It is recorded, used after a restart, and used again where the files have gone from this machine."""
    hub.stalling.add("model.safetensors")
    reference = ModelReference(name="org/tiny")
    assert served.registry.serve(reference).name is None
    assert hub.stalled.wait(60)
    hub.go_on.set()
    assert served.ask(reference) == "org/tiny"
    assert served.catalog.resolve("org/tiny").dimensions == 64
    kept = orjson.loads((served.data / "models.json").read_bytes())["models"]["org/tiny"]
    assert kept["found"]["commit"] == COMMIT
    # A cleaning takes the files.
    shutil.rmtree(Path(kept["found"]["path"]).parents[2])
    hub.requests.clear()
    served.start("org/tiny")
    with pytest.raises(NotFound, match="fetched again"):
        served.catalog.resolve("org/tiny")
    assert served.ask(reference) == "org/tiny"
    asked = [line for line in hub.requests if "/api/models/org/tiny" in line]
    assert asked
    assert all(COMMIT in line for line in asked), "where the branch is now is nobody's question"
    assert served.catalog.resolve("org/tiny").dimensions == 64


def test_files_that_batches_wait_for_are_fetched_without_a_client(served: Served, hub: Hub) -> None:
    """A sweep finds them there; and one that failed is tried again a minute later."""
    assert served.ask(ModelReference(name="org/tiny")) == "org/tiny"
    kept = orjson.loads((served.data / "models.json").read_bytes())["models"]["org/tiny"]
    shutil.rmtree(Path(kept["found"]["path"]).parents[2])
    repositories, hub.repositories = hub.repositories, {}
    served.start("org/tiny")

    def sweep_until(words: str | None) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            served.registry.sweep()
            try:
                served.catalog.resolve("org/tiny")
            except NotFound as error:
                if words is not None and words in error.message:
                    return
            else:
                assert words is None
                return
            time.sleep(0.02)  # as the sweeper does, which nobody wakes
        raise AssertionError(words)

    sweep_until("the Hub gave no files")
    hub.repositories = repositories
    hub.requests.clear()
    served.registry.sweep()
    assert hub.requests == [], "not at once"
    served.steady.now += 61
    sweep_until(None)


def test_a_revision_and_a_precision_have_names_of_their_own(served: Served, hub: Hub) -> None:
    """The plain name stays that of the plain model; the commit is what the revision was."""
    names = [
        served.ask(reference)
        for reference in (
            ModelReference(name="org/tiny"),
            ModelReference(name="org/tiny", revision="main"),
            ModelReference(name="org/tiny", precision="f32"),
        )
    ]
    assert names[0] == "org/tiny"
    assert len(set(names)) == 3
    assert all(name.startswith("org/tiny-") for name in names[1:])


def test_what_has_no_safetensors_or_wants_code_is_refused_before_its_weights_are_fetched(
    served: Served, hub: Hub, tmp_path: Path
) -> None:
    """Pickle, ONNX and a configuration with code of its own: each says what is wrong."""
    pickle = Tiny().write(tmp_path / "pickle")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    onnx = Tiny().write(tmp_path / "onnx")
    (onnx / "onnx").mkdir()
    (onnx / "model.safetensors").rename(onnx / "onnx" / "model.onnx")
    coded = Tiny().write(tmp_path / "coded")
    write(coded, "config.json", {"model_type": "new", "auto_map": {"AutoModel": "modeling.New"}})
    for name, folder, words in (
        ("org/pickle", pickle, "no model.safetensors"),
        ("org/onnx", onnx, "no model.safetensors"),
        ("org/coded", coded, "auto_map"),
    ):
        hub.repositories[name] = (COMMIT, folder)
        with pytest.raises(InvalidArgument, match=words):
            served.ask(ModelReference(name=name))
    assert not any(name.endswith((".safetensors", ".bin", ".onnx")) for name in hub.downloaded)
    with pytest.raises(NotFound, match="hf download org/none") as unknown:
        served.ask(ModelReference(name="org/none"))
    assert unknown.value.reason == "MODEL_NOT_FOUND"
    assert served.names == []


def test_a_fetch_that_nobody_asks_about_ends(served: Served, hub: Hub) -> None:
    """Whoever wanted it was interrupted or killed; who asks again begins where it was left."""
    hub.stalling.add("model.safetensors")
    reference = ModelReference(name="org/tiny")
    served.registry.serve(reference)
    assert hub.stalled.wait(60)
    served.steady.now += WANTED_SECONDS / 2
    assert served.registry.serve(reference).name is None
    served.steady.now += WANTED_SECONDS - 1
    assert not hub.left.wait(1.2), "somebody asked a moment ago"
    served.steady.now += 2
    assert hub.left.wait(60)
    hub.stalling.clear()
    with pytest.raises(Unavailable, match="ended"):
        served.ask(reference)
    assert served.ask(reference) == "org/tiny"


def test_two_who_want_the_same_hear_of_one_fetch(served: Served, hub: Hub) -> None:
    """Bytes are told to both; other models are served meanwhile; the end of the service ends it."""
    hub.stalling.add("model.safetensors")
    reference = ModelReference(name="org/tiny")
    served.registry.serve(reference)
    assert hub.stalled.wait(60)
    assert served.registry.serve(reference).name is None
    assert sum(line.startswith("GET") and "model.safetensors" in line for line in hub.requests) == 1
    ended = threading.Thread(target=served.registry.close)
    ended.start()
    assert hub.left.wait(60)
    ended.join(60)
    assert not ended.is_alive()


def test_the_file_says_what_stands_for_a_name(served: Served, tmp_path: Path) -> None:
    """For people too: it is JSON, readable by its owner alone."""
    path = Tiny().write(tmp_path / "final")
    name = served.folder(path)
    file = served.data / "models.json"
    assert json.loads(file.read_text())["models"][name]["folder"] == str(path)
    assert file.stat().st_mode & 0o777 == 0o600
