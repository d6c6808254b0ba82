"""Plain submits to the stand-ins of Gemini and Vertex: what they created is counted there, and once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from at_vertex import vertex
from client_scripts import unhurried
from hosted.behaviour import Behaviour, Fault
from hosted.gemini import GeminiStandIn

from embatch import Client, EmbatchError
from embatch.client.paid_once import OUTCOME_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hosted.batch_service import BatchService

pytestmark = pytest.mark.hosted

TEXTS = [f"text number {number}" for number in range(30)]


@contextmanager
def hosted(name: str, patch: pytest.MonkeyPatch, behaviour: Behaviour) -> Iterator[BatchService]:
    """Serve a stand-in that the environment leads to."""
    if name == "vertex":
        with vertex(patch, behaviour) as google:
            yield google
        return
    with GeminiStandIn(behaviour) as gemini:
        patch.setenv("GOOGLE_API_KEY", gemini.key)
        patch.setenv("GOOGLE_GEMINI_BASE_URL", gemini.url)
        yield gemini


@pytest.mark.parametrize("name", ["gemini", "vertex"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("create", calls=(1,), cut="handled"),
        Fault("create", calls=(1,), status=500, handled=True),
        Fault("create", calls=(1,), cut="body", at=10),
    ],
    ids=["reply lost", "taken and 500", "reply cut"],
)
def test_a_batch_whose_reply_is_lost_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault
) -> None:
    """In the list, by its mark: by the display name, the label, or the input's name."""
    with (
        hosted(name, monkeypatch, Behaviour(faults=(fault,))) as google,
        Client(name, data=tmp_path) as client,
    ):
        unhurried(client)
        batch = client.async_batch_embed_contents(TEXTS, display_name="Test")
        assert batch.display_name == "Test"
        batch = client.await_batch_completion(batch, poll_interval=0.0)
        assert client.get_batch_embeddings(batch).failed_responses == []
        assert google.counts()["creates"] == 1
        client.async_batch_embed_contents(TEXTS, display_name="Test")
        assert google.counts()["creates"] == 2


@pytest.mark.parametrize("name", ["gemini", "vertex"])
def test_a_batch_that_is_late_in_the_list_is_found_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The first call says that nobody knows; no call creates another one."""
    fault = Fault("create", calls=(1,), cut="handled")
    behaviour = Behaviour(faults=(fault,), lists_late_seconds=100.0)
    with hosted(name, monkeypatch, behaviour) as google, Client(name, data=tmp_path) as client:
        unhurried(client)
        for _ in range(2):
            with pytest.raises(EmbatchError, match="not known whether") as error:
                client.async_batch_embed_contents(TEXTS, display_name="Test")
            assert error.value.reason == OUTCOME_UNKNOWN
        google.clock.advance(101.0)
        batch = client.async_batch_embed_contents(TEXTS, display_name="Test")
        assert [job["name"].split("/")[-1] for job in google.counts()["jobs"]] == [batch.name.split("/")[-1]]
        assert google.counts()["creates"] == 1
