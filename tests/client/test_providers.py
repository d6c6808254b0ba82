"""A third provider is a file and a line in `targets`: a stand-in with its own protocol does everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest
from client_scripts import Clock, both, json_reply, play, scripted, session, wired
from stand_in import KEY, STAND_IN, StandInService, target, vector

from embatch import (
    AsyncClient,
    BatchTimeout,
    Client,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    State,
    Unavailable,
)
from embatch.client import flows, targets
from embatch.client.flows import Wait
from embatch.client.for_runs import ForRuns
from embatch.client.targets import resolve
from embatch.runs.identity import about
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.prices import DEFAULT
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

FEW, MANY = ["one", "two words"], ["one", "two words", "", "four of them, no less", "five"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the stand-in's line to the table of targets."""
    monkeypatch.setitem(targets.HOSTED, "stand-in", target)


def alike(
    run: Callable[[Client], Any],
    run_async: Callable[[AsyncClient], Awaitable[Any]],
    faults: Callable[[], list[Any]] = list,
) -> tuple[Any, StandInService]:
    """Run the same in both colours; return what came of it, and the service of the second."""
    services: list[StandInService] = []

    def service() -> StandInService:
        services.append(StandInService(faults=faults()))
        return services[-1]

    found, other = both(service, run, run_async, "stand-in", api_key=KEY)
    assert found == other
    calls = [[(one.method, str(one.url), one.content) for one in service.seen] for service in services]
    assert calls[0] == calls[1]
    return found, services[1]


@pytest.mark.parametrize("texts", [FEW, MANY])
def test_a_batch_is_submitted_polled_and_read(texts: list[str]) -> None:
    """Inline while it is small and through a file above the provider's limit; faulty texts stand apart."""

    def shown(batch: Any, polls: list[State], result: Any) -> object:
        failed = [(at, error.message) for at, error in result.failed_responses]
        matrix = np.nan_to_num(result.to_numpy(failed="nan"), nan=-1.0).tolist()
        return batch.state, polls, batch.model, matrix, failed

    def run(client: Client) -> object:
        polls: list[State] = []
        batch = client.async_batch_embed_contents(texts, display_name="Test")
        batch = client.await_batch_completion(batch, on_progress=lambda one: polls.append(one.state))
        return shown(batch, polls, client.get_batch_embeddings(batch, output_dimensionality=2))

    async def run_async(client: AsyncClient) -> object:
        polls: list[State] = []
        batch = await client.async_batch_embed_contents(texts, display_name="Test")
        batch = await client.await_batch_completion(batch, on_progress=lambda one: polls.append(one.state))
        return shown(batch, polls, await client.get_batch_embeddings(batch, output_dimensionality=2))

    (state, polls, model, matrix, failed), service = alike(run, run_async)
    assert (state, polls, model) == (State.COMPLETED, [State.PENDING, State.COMPLETED], "models/parrot")
    assert matrix == [vector(text)[:2] if text else [-1.0, -1.0] for text in texts]
    assert failed == ([] if texts is FEW else [(2, "no text")])
    assert service.blobs == ([] if texts is FEW else ["\n".join([*texts, ""]).encode()])


def test_what_is_wanted_at_once_comes_at_once() -> None:
    """One text, a few in calls as large as the provider takes, and a count."""

    def run(client: Client) -> object:
        one, many = client.embed_content("one"), client.batch_embed_contents(["one", "two", "three"])
        counted = client.count_tokens(["a b", "c", "d e f"])
        return [found.values.tolist() for found in [one, *many]], counted

    async def run_async(client: AsyncClient) -> object:
        one, many = (
            await client.embed_content("one"),
            await client.batch_embed_contents(["one", "two", "three"]),
        )
        counted = await client.count_tokens(["a b", "c", "d e f"])
        return [found.values.tolist() for found in [one, *many]], counted

    (found, counted), service = alike(run, run_async)
    assert found == [*map(vector, ["one", "one", "two", "three"])]
    assert counted == 6
    paths = [one.url.path for one in service.seen]
    assert paths == ["/models", "/now", "/now", "/now", "/words", "/words"]


def test_batches_are_listed_renamed_stopped_and_dropped() -> None:
    """Every other call goes the provider's way too."""

    def run(client: Client) -> object:
        batch = client.async_batch_embed_contents(FEW, display_name="Test")
        renamed = client.update_batch(batch, display_name="New").display_name
        stopped = client.cancel_batch(batch).state
        client.delete_batch(batch)
        return (
            renamed,
            stopped,
            [one.name for one in client.list_batches()],
            [one.name for one in client.list_models()],
        )

    async def run_async(client: AsyncClient) -> object:
        batch = await client.async_batch_embed_contents(FEW, display_name="Test")
        renamed = (await client.update_batch(batch, display_name="New")).display_name
        stopped = (await client.cancel_batch(batch)).state
        await client.delete_batch(batch)
        return (
            renamed,
            stopped,
            [one.name async for one in client.list_batches()],
            [one.name async for one in client.list_models()],
        )

    found, _ = alike(run, run_async)
    assert found == ("New", State.CANCELLED, ["batches/0"], ["models/parrot"])


def test_errors_are_read_by_the_provider() -> None:
    """Its own words, and whether trying again helps."""

    def busy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, json={"oops": "asleep"})

    async def get(client: AsyncClient) -> object:
        return await client.get_batch_status("batches/7")

    found, service = alike(lambda client: client.get_batch_status("batches/7"), get, lambda: [busy])
    assert found == (NotFound, "no such job", None)
    assert len(service.seen) == 2
    found, service = alike(lambda client: client.get_batch_status("batches/7"), get, lambda: [busy] * 6)
    assert found == (Unavailable, "asleep", None)

    async def embed(client: AsyncClient) -> object:
        return await client.embed_content("one", model="gull")

    found, _ = alike(lambda client: client.embed_content("one", model="gull"), embed)
    assert found == (NotFound, "no such bird", None)


def test_how_often_to_poll_and_how_long_to_wait_is_the_providers() -> None:
    """Its interval by the size of the batch, to which polls slow down, and its time limit."""
    clock = Clock()
    job = {"id": "0", "with": "parrot", "as": "Test", "state": "waiting", "count": 12_000, "bad": 0}
    flow = flows.await_batch(session(target(KEY, {}), clock=clock), "batches/0", Wait(), None)
    played = play(flow, [json_reply(job)] * 13, clock)
    waits = [call.after for call in played.calls]
    assert waits[:10] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.0, 12.0]
    assert sum(waits) == pytest.approx(70.0)
    assert isinstance(played.error, BatchTimeout)


def test_without_idempotency_keys_a_submit_that_may_have_been_taken_is_not_sent_again() -> None:
    """It would cost twice."""

    def lost(request: httpx2.Request) -> httpx2.Response | None:
        if request.url.path == "/jobs":
            raise httpx2.ReadError("reset")
        return None

    async def submit(client: AsyncClient) -> object:
        return await client.async_batch_embed_contents(FEW, display_name="Test", idempotency_key="mine")

    found, service = alike(
        lambda client: client.async_batch_embed_contents(FEW, display_name="Test", idempotency_key="mine"),
        submit,
        lambda: [lost],
    )
    assert found[0] is ConnectionFailed
    assert [one.url.path for one in service.seen] == ["/models", "/jobs"]


def test_what_a_provider_cannot_do_is_refused_or_left_out_before_anything_is_sent() -> None:
    """A priority is refused by name; reference path and cache are optional to those who ask."""
    service = StandInService()
    with Client("stand-in", api_key=KEY, http_client=wired(service)) as client:
        with pytest.raises(InvalidArgument, match="stand-in knows no priority") as refused:
            client.async_batch_embed_contents(FEW, display_name="Test", priority=1)
        assert refused.value.field == "priority"
        with pytest.raises(InvalidArgument, match="stand-in knows no priority"):
            client.update_batch("batches/0", priority=0)
        assert ForRuns(client).embed_reference(["one"]) is None
        assert ForRuns(client).publish("run") == 0
    assert service.seen == []


def test_a_target_is_named_and_finds_its_own_key(tmp_path: Path) -> None:
    """The variable is the provider's; a name that is none is told of the new one too."""
    found = resolve("stand-in", key=None, data=tmp_path, environ={"STAND_IN_TOKEN": KEY})
    assert (found.provider, found.headers) == (STAND_IN, {"Authorization": f"Bearer {KEY}"})
    assert KEY not in repr(found)
    with pytest.raises(
        InvalidArgument, match="a target is `local`, `gemini`, `vertex`, `stand-in`, a service's address"
    ):
        resolve("stand-out", key=None, data=tmp_path, environ={})


def test_it_is_spoken_to_at_another_address() -> None:
    """As any hosted one: a gateway's, below its path and with the key."""
    handle, seen = scripted([httpx2.Response(404, json={"oops": "no such job"})])
    with (
        Client(
            "stand-in", base_url="https://gateway/birds", api_key=KEY, http_client=wired(handle)
        ) as client,
        pytest.raises(NotFound, match="no such job"),
    ):
        client.get_batch_status("batches/7")
    assert str(seen[0].url) == "https://gateway/birds/jobs/7"
    assert seen[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_run_goes_through_it_and_has_its_name_and_no_price(tmp_path: Path) -> None:
    """Block by block, at the dimensions that were asked for; what it costs is not in the table."""
    place, out = tmp_path / "in.txt", tmp_path / "out.parquet"
    place.write_text("".join(f"text {number}\n" for number in range(7)))
    source, wanted = open_source(str(place), None, None), EmbedOptions(dimensions=(2,))
    service = StandInService()
    with Client("stand-in", api_key=KEY, http_client=wired(service)) as client:
        named = about(client, source, wanted, 5)
        options = RunOptions(tmp_path / "data", block_rows=5)
        summary = embed_dataset(client, source, str(out), wanted, options, lambda _: None)
    assert (named["target"], named["dimensions"]) == ("stand-in", 2)
    assert sorted(len(job["texts"]) for job in service.jobs) == [2, 5]
    assert (summary.rows, summary.failed, summary.model, summary.sample) == (7, 0, "models/parrot", None)
    assert pq.read_table(out).num_rows == 7
    assert DEFAULT.price("stand-in", "models/parrot") is None
    price = DEFAULT.price("gemini", "models/gemini-embedding-001")
    assert price is not None
    assert price.of(1_000_000, 0) == (price.batch, price.interactive)
