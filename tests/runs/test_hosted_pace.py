"""Runs at a hosted service on a simulated clock: a full quota, stuck batches, a deadline, a cap, the bill."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from hosted.behaviour import Behaviour, Fault
from hosted.gemini import GeminiStandIn

from embatch import Client, FailedPrecondition, InvalidArgument
from embatch.client.for_runs import ForRuns
from embatch.runs.clock import Clock
from embatch.runs.course import Piece
from embatch.runs.ledger import Ledger
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.pacing import Pacing
from embatch.runs.prices import DEFAULT
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source
from embatch.runs.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from embatch.runs.progress import RunProgress, Summary

pytestmark = pytest.mark.hosted

DIMENSIONS = 8
ROWS, BLOCK = 40, 10
CHECKED = 1
"""Texts of so few rows that are embedded again, to see whether vectors belong to them."""
HOUR = 3600.0


def _interrupt() -> None:
    raise KeyboardInterrupt


@dataclass
class Place:
    """A stand-in, and a run that goes on with it call after call."""

    google: GeminiStandIn
    folder: Path
    said: list[str] = field(default_factory=list)
    stops: Callable[[RunProgress], bool] = lambda _: False
    """Whether Ctrl-C is pressed when this is told."""
    sleeps: list[float] = field(default_factory=list)
    out: str = "out.parquet"
    ends: float = math.inf
    """When something happens while the run waits, by the service's clock."""
    ended: Callable[[], object] = _interrupt

    def texts(self) -> list[str]:
        """Return what is embedded."""
        return [f"row {at} tells of {'many ' * (at % 5)}things" for at in range(ROWS)]

    def sleep(self, seconds: float) -> None:
        """Let time pass for both, an instant beyond, so that nothing waits for a rounded second."""
        self.sleeps.append(seconds)
        assert len(self.sleeps) < 50_000, "it waits for ever"
        self.google.clock.advance(max(seconds, 0.001))
        if self.google.clock.now > self.ends:
            self.ends = math.inf
            self.ended()

    def clock(self) -> Clock:
        """Return the service's clock, as a run takes its time from it."""
        return Clock(lambda: self.google.clock.now, lambda: self.google.clock.now, self.sleep)

    def until(self, seconds: float) -> None:
        """Press Ctrl-C once so much time has passed."""
        self.ends = self.google.clock.now + seconds

    def run(self, **wanted: Any) -> Summary:
        """Go on with the run until it is done."""
        source = self.folder / "in.jsonl"
        if not source.exists():
            source.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in self.texts()))
        options = RunOptions(self.folder / "data", block_rows=BLOCK, clock=self.clock(), **wanted)
        opened, out = open_source(str(source), None, None), str(self.folder / self.out)
        wish = EmbedOptions(model="gemini-embedding-001", dimensions=(DIMENSIONS,))
        with Client("gemini", api_key=self.google.key, base_url=self.google.url) as client:
            return embed_dataset(client, opened, out, wish, options, self._told)

    def _told(self, standing: RunProgress) -> None:
        if self.stops(standing):
            raise KeyboardInterrupt
        self.said += [standing.said] if standing.said else []

    def written(self) -> pa.Table:
        """Return the output."""
        return pq.read_table(self.folder / self.out)

    def check(self) -> None:
        """Hold every vector against a batch of good days."""
        other = Place(self.google, self.folder, out="other.parquet")
        self.google.behave(stays="", staying_batches=(), failing_tokens=None, faults=(), seconds_to_end=1.0)
        other.run()
        mine, others = (np.array(one.written()["embedding"].to_pylist()) for one in (self, other))
        assert mine.shape == (ROWS, DIMENSIONS)
        assert np.abs(mine - others).max() < 1e-6
        assert self.written()["error"].null_count == ROWS

    def cost(self) -> dict[str, Any]:
        """Return what the output says of its cost."""
        found: dict[str, Any] = orjson.loads(self.written().schema.metadata[b"embatch.cost"])
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A service on which batches take ten minutes."""
    with GeminiStandIn(Behaviour(seconds_to_end=600.0)) as google:
        yield Place(google, tmp_path)


def later(place: Place, hours: float) -> str:
    """Return a moment as a command says it."""
    return datetime.fromtimestamp(place.google.clock.now + hours * HOUR, UTC).isoformat()


def test_batches_that_fail_for_quota_are_tried_again_with_fewer_in_flight(place: Place) -> None:
    """Accepted and failed: it is told, nothing is lost, and what failed cost nothing."""
    place.google.behave(failing_tokens=200)
    summary = place.run()
    failed = [job for job in place.google.jobs if job.state == "FAILED"]
    assert failed
    assert (summary.rows, summary.failed) == (ROWS, 0)
    assert any("the service's quota is full" in said for said in place.said)
    assert summary.bill is not None
    assert summary.bill.ways.keys() == {"batch", "checked"}
    assert summary.bill.ways["batch"] == pytest.approx(summary.tokens * 0.075 / 1e6, abs=1e-8)
    assert summary.bill.dollars == pytest.approx(sum(summary.bill.ways.values()), abs=1e-8)


def test_a_create_that_is_refused_for_quota_is_tried_later(place: Place) -> None:
    """With RetryInfo of ten minutes the run comes back after half a minute, for others may have ended."""
    place.google.behave(
        faults=(Fault("create", calls=(2, 3), status=429, details="retry", retry_seconds=600.0),)
    )
    summary = place.run()
    assert (summary.rows, summary.failed, place.google.creates) == (ROWS, 0, ROWS // BLOCK)
    assert any("in flight, the next one is tried in" in said for said in place.said)


def test_batches_that_are_not_back_go_another_way_just_in_time(place: Place) -> None:
    """The vectors are the same, what came back is paid once, and nothing goes before the last minutes."""
    place.google.behave(stays="PENDING", staying_batches=(2, 4))
    begun = place.google.clock.now
    summary = place.run(deadline=later(place, 2))
    assert place.google.clock.now - begun <= 2 * HOUR
    assert place.google.clock.now - begun > 1.9 * HOUR
    assert (summary.rows, summary.failed, place.google.creates) == (ROWS, 0, ROWS // BLOCK)
    assert place.google.items == 2 * BLOCK + CHECKED
    assert [job.state for job in place.google.jobs if job.ordinal in (2, 4)] == ["CANCELLED"] * 2
    assert any("texts are embedded at once" in said and "is given up" in said for said in place.said)
    assert summary.bill is not None
    assert summary.bill.ways["interactive"] > 0
    assert place.cost() == summary.bill.record()
    place.check()


def test_what_a_cancelled_batch_had_done_is_kept_and_paid_once(place: Place) -> None:
    """One that runs ends with the half that it had; only the rest is embedded at once."""
    place.google.behave(stays="RUNNING", staying_batches=(1,))
    summary = place.run(deadline=later(place, 1))
    assert (summary.failed, place.google.items) == (0, BLOCK // 2 + CHECKED)
    assert summary.bill is not None
    assert summary.bill.ways["abandoned"] > 0
    place.check()


def test_a_cap_stops_a_run_and_a_higher_one_goes_on(place: Place) -> None:
    """Nothing is begun beyond it; the same command goes on from there and pays nothing twice."""
    with pytest.raises(InvalidArgument, match="more than --max-cost"):
        place.run(max_cost="0.000001")
    assert place.google.creates == 0
    refused = tuple(range(3, 200))
    place.google.behave(
        faults=(Fault("create", calls=refused, status=429, details="retry", retry_seconds=600.0),)
    )
    place.until(HOUR)
    with pytest.raises(KeyboardInterrupt):
        place.run(max_cost="1")
    place.google.behave(faults=())
    with pytest.raises(FailedPrecondition, match=r"--max-cost \$0\.0000 is reached: .* a higher --max-cost"):
        place.run(max_cost="0.000015")
    assert place.google.creates == 2
    summary = place.run(max_cost="1")
    assert (summary.rows, summary.failed, place.google.creates) == (ROWS, 0, ROWS // BLOCK)


def test_what_has_no_price_has_no_deadline(place: Place) -> None:
    """Nothing is created, and the remedy is named."""
    for wanted in ({"deadline": "1h"}, {"max_cost": "1"}):
        with pytest.raises(InvalidArgument, match=r"name the price in a file, by --prices FILE"):
            place.run(prices=place_without_prices(), **wanted)
    with pytest.raises(InvalidArgument, match="--deadline has passed"):
        place.run(deadline="2001-01-01T00:00:00Z")
    assert place.google.creates == 0


def place_without_prices() -> Any:
    """Return a table without a model."""
    from embatch.runs.prices import Prices

    return Prices(models={})


def test_a_batch_that_waits_for_hours_is_told_of(place: Place) -> None:
    """After six hours, and once the others are known to take ten minutes after an hour."""
    place.google.behave(stays="PENDING", staying_batches=(2,))
    place.until(2.5 * HOUR)
    place.ended = place.google.release
    summary = place.run()
    assert summary.failed == 0
    told = [said for said in place.said if "waits to be begun for" in said]
    assert len(told) == 2
    assert "1.0 h now; 10 min is usual in this run" in told[0]


def test_the_end_of_a_batch_is_seen_soon_and_asked_for_seldom(place: Place) -> None:
    """Seconds from a batch's end to its rows in the ledger: a twentieth of its age. So many polls a batch."""
    place.run()
    polls = place.google.calls["status"]
    ends = [job.ended - job.created for job in place.google.jobs if job.ended is not None]
    assert all(600.0 <= end <= 600.0 * 1.06 for end in ends)
    assert polls <= 75 * len(ends)


@pytest.mark.long
@pytest.mark.parametrize("step", [Step.KNOWN, Step.FETCHED])
def test_a_run_that_is_stopped_anywhere_keeps_to_its_cap(place: Place, step: Step) -> None:
    """What was begun before the stop is counted by the next call, and no batch is created twice."""
    passed = 0

    def reached(now: Step) -> None:
        nonlocal passed
        passed += now is step
        if now is step and passed == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.run(max_cost="0.0001", deadline=later(place, 1), reached=reached)
    summary = place.run()
    assert (summary.rows, summary.failed, place.google.creates) == (ROWS, 0, ROWS // BLOCK)
    assert summary.bill is not None
    assert summary.bill.dollars <= 0.0001
    assert summary.bill.ways["batch"] == pytest.approx(summary.tokens * 0.075 / 1e6, abs=1e-8)


def test_a_run_that_is_stopped_while_it_embeds_at_once_pays_for_both_tries(place: Place) -> None:
    """What went out is paid whether it was kept or not; the batch that was given up stays so."""
    place.google.behave(stays="PENDING", staying_batches=(2,))
    place.stops = lambda standing: not standing.batch.name
    with pytest.raises(KeyboardInterrupt):
        place.run(deadline=later(place, 1), max_cost="0.0002")
    place.stops = lambda _: False
    summary = place.run()
    assert (summary.rows, summary.failed, place.google.creates) == (ROWS, 0, ROWS // BLOCK)
    assert place.google.items == 2 * BLOCK + CHECKED
    assert summary.bill is not None
    one = summary.tokens / ROWS * BLOCK * 0.15 / 1e6
    assert summary.bill.ways["interactive"] == pytest.approx(2 * one, rel=0.3)
    assert summary.bill.dollars <= 0.0002


def test_a_rate_that_is_low_has_blocks_go_the_other_way_sooner(place: Place) -> None:
    """Ten texts a minute: forty of them take four minutes, and a quarter more."""
    place.google.behave(stays="PENDING")
    options = RunOptions(place.folder, deadline=later(place, 1), clock=place.clock())
    price = DEFAULT.price("gemini", "gemini-embedding-001")
    starts = []
    for rate in (None, 10):
        with Client("gemini", api_key="k", base_url=place.google.url, rate=rate) as client:
            can, ledger = ForRuns(client).capabilities(None), Ledger.open(place.folder / f"{rate}", {})
            pacing = Pacing.of(client, can, options, price, ledger)
            ledger.close()
        assert pacing.course is not None
        starts.append(pacing.course.starts([Piece(0, ROWS, 400, 0.0, 0.0)]))
    assert starts[0] - starts[1] == pytest.approx(1.25 * (ROWS / 10 * 60 - ROWS / 50))
