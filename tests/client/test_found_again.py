"""A batch that its submit left a mark on: named uploads, marked display names, and what a user sees of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from client_scripts import json_reply, play, session, unhurried, wired
from fake_gemini import KEY, FakeGemini

from embatch import Batch, Client, FailedPrecondition, InvalidArgument, TooLarge
from embatch.client import flows
from embatch.client.fingerprint import SEPARATOR, fingerprint
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.for_runs import ForRuns
from embatch.client.providers.gemini import GEMINI
from embatch.client.providers.provider import Target
from embatch.client.targets import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = fingerprint("run", 7)
FEW = ["one", "two"]
MANY = [f"text {number}" for number in range(1_200)]
NAMED = f"files/embatch-{MARK}"


@contextmanager
def gemini(**behaviour: Any) -> Iterator[tuple[Client, FakeGemini]]:
    """Return a client and the fake it talks to."""
    fake = FakeGemini(**behaviour)
    with Client("gemini", api_key=KEY, http_client=wired(fake)) as client:
        unhurried(client)
        yield client, fake


def submitted(client: Client, texts: list[str], name: str = "Knowledge", mark: str | None = MARK) -> Batch:
    """Submit as a run does."""
    return ForRuns(client).submit(texts, RequestDefaults(), BatchOptions(name, fingerprint=mark))


def started(fake: FakeGemini) -> int:
    """Return how many uploads were begun and accepted."""
    return len(fake.sessions)


@pytest.mark.parametrize("texts", [FEW, MANY], ids=["inline", "file"])
def test_the_mark_travels_and_does_not_show(texts: list[str]) -> None:
    """Whoever submits, asks, lists or renames sees the name as it was given, and the mark beside it."""
    with gemini() as (client, fake):
        batch = submitted(client, texts)
        sent = fake.jobs[batch.name].batch["displayName"]
        seen = [batch, client.get_batch_status(batch), *client.list_batches()]
        assert [(one.display_name, one.fingerprint) for one in seen] == [("Knowledge", MARK)] * 3
        assert sent == f"Knowledge{SEPARATOR}{MARK}"
        assert batch.input_file == (None if texts is FEW else NAMED)


def test_a_long_name_keeps_its_mark() -> None:
    """Google takes 512 characters: it is the name that is cut."""
    with gemini() as (client, fake):
        batch = submitted(client, FEW, "n" * 512)
        assert len(fake.jobs[batch.name].batch["displayName"]) == 512
        assert batch.fingerprint == MARK


def test_a_renamed_batch_is_still_found() -> None:
    """By its name or as a batch; one without a mark gets none."""
    with gemini() as (client, fake):
        batch, plain = submitted(client, FEW), submitted(client, FEW, mark=None)
        for which in (batch, batch.name):
            found = client.update_batch(which, display_name="New")
            assert (found.display_name, found.fingerprint) == ("New", MARK)
            assert fake.jobs[batch.name].batch["displayName"] == f"New{SEPARATOR}{MARK}"
        assert client.update_batch(plain.name, display_name="New").fingerprint is None
        assert fake.jobs[plain.name].batch["displayName"] == "New"


def test_a_service_with_idempotency_keys_is_shown_no_mark() -> None:
    """It finds the batch by its key."""
    metadata = {"name": "batches/b", "model": "models/m", "displayName": "Test"}
    options = BatchOptions("Test", idempotency_key="key", fingerprint=MARK)
    played = play(
        flows.submit(session(), FEW, RequestDefaults("m"), options),
        [json_reply({"name": "batches/b", "metadata": metadata})],
    )
    assert orjson.loads(played.calls[0].body)["batch"]["displayName"] == "Test"
    assert MARK not in str(played.calls[0])


def test_an_upload_that_is_there_is_not_repeated() -> None:
    """The one whose create never went out, or was lost."""
    with gemini() as (client, fake):
        first = submitted(client, MANY)
        again = submitted(client, MANY)
        assert first.input_file == again.input_file == NAMED
        assert started(fake) == 1


def test_an_upload_that_is_still_looked_at_is_waited_for() -> None:
    """It is there, but no batch can read it yet."""
    with gemini() as (client, fake):
        submitted(client, MANY)
        fake.file_states[NAMED] = ["PROCESSING", "PROCESSING"]
        assert submitted(client, MANY).input_file == NAMED
        assert started(fake) == 1


@pytest.mark.parametrize("trouble", ["cut", "failed", "begun"])
def test_an_upload_that_is_not_whole_is_not_used(trouble: str) -> None:
    """Fewer bytes, a file that the service could not read, or one that was never ended: another goes up."""
    with gemini() as (client, fake):
        if trouble == "begun":
            fake.named["another"] = NAMED
        else:
            submitted(client, MANY)
            fake.files[NAMED] = fake.files[NAMED][: -100 if trouble == "cut" else None]
            fake.file_states[NAMED] = ["FAILED" if trouble == "failed" else "ACTIVE"]
        batch = submitted(client, MANY)
        assert batch.input_file not in (None, NAMED)
        assert batch.fingerprint == MARK
        assert fake.files[str(batch.input_file)].count(b"\n") == len(MANY)


def test_files_are_cleaned_up_once_the_batch_has_ended() -> None:
    """Input and results, before it never; a second time nothing is left to be done."""
    with gemini() as (client, fake):
        batch = submitted(client, MANY)
        with pytest.raises(FailedPrecondition, match="still runs"):
            ForRuns(client).clean_up(batch)
        assert NAMED in fake.files
        batch = client.await_batch_completion(batch, poll_interval=0.0)
        client.get_batch_embeddings(batch)
        ForRuns(client).clean_up(batch)
        ForRuns(client).clean_up(batch)
        # The name of a results file is longer than the service lets a file's be: it stays for its time.
        assert [*fake.files] == [batch.responses_file]


def test_nobody_elses_file_is_deleted() -> None:
    """A batch without a mark may share its input with another."""
    with gemini() as (client, fake):
        batch = submitted(client, MANY, mark=None)
        batch = client.await_batch_completion(batch, poll_interval=0.0)
        calls = len(fake.seen)
        ForRuns(client).clean_up(batch)
        assert len(fake.seen) == calls
        assert batch.input_file in fake.files


def test_an_inline_batch_has_no_files() -> None:
    """There is nothing to ask for."""
    with gemini() as (client, fake):
        batch = client.await_batch_completion(submitted(client, FEW), poll_interval=0.0)
        calls = len(fake.seen)
        ForRuns(client).clean_up(batch)
        assert len(fake.seen) == calls


def test_a_file_that_is_too_large_is_refused_before_it_goes_up() -> None:
    """The service would say so once it is there."""
    can = replace(GEMINI.capabilities, file_bytes=1_000, inline_requests=1)
    target = Target("http://google", replace(GEMINI, capabilities=can), key=KEY)
    played = play(flows.submit(session(target), ["x" * 990, ""], RequestDefaults(), BatchOptions("Test")), [])
    assert isinstance(played.error, TooLarge)
    assert "gemini takes 1,000: submit fewer at a time" in played.error.message


@pytest.mark.parametrize(("tier", "tokens"), [("", 500_000), ("2", 5_000_000), ("3", 10_000_000)])
def test_what_a_project_may_have_in_flight_is_its_tiers(tier: str, tokens: int) -> None:
    """The lowest where nobody says; one that does not exist is refused by name."""
    environ = {"EMBATCH_GEMINI_TIER": tier}
    can = resolve("gemini", key=KEY, data=Path("/data"), environ=environ).provider.capabilities
    assert (can.tokens_in_flight, can.batches_in_flight, can.file_bytes) == (tokens, 90, 2**31)
    with pytest.raises(InvalidArgument, match="EMBATCH_GEMINI_TIER"):
        resolve("gemini", key=KEY, data=Path("/data"), environ={"EMBATCH_GEMINI_TIER": "free"})
