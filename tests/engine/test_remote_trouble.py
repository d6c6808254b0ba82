"""The remote engine against all that an endpoint can get wrong: who is to blame, and what is never kept."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from standin import (
    DIMENSIONS,
    KEY,
    Answer,
    Call,
    Clock,
    StandIn,
    always,
    body,
    compact,
    reply,
    standing_in,
    start,
    vector,
)

from embatch.engine import endpoint as endpoint_module
from embatch.engine.protocol import RowsRefused, Shape
from embatch.engine.remote import PROBE, RemoteEngine
from embatch.errors import EngineTrouble

pytest_plugins = ("endpoint_fixtures",)

TEXTS = ("one text", "another text", "a third")
RIGHT = [{"index": place, "embedding": compact(vector(text))} for place, text in enumerate(TEXTS)]
SHAPE = Shape(len(TEXTS), 16)


def _but(place: int, **changes: Any) -> list[dict[str, Any]]:
    data = [dict(one) for one in RIGHT]
    data[place] |= changes
    return data


WRONG: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>502</html>",
    "half a JSON": body(RIGHT)[:-5],
    "NaN as JSON": b'{"data": [{"index": 0, "embedding": [NaN]}]}',
    "a list": b"[1, 2]",
    "no data": b'{"object": "list"}',
    "data null": body(None),
    "data not objects": body([1, 2, 3]),
    "no vectors": body([]),
    "too few": body(RIGHT[:2]),
    "too many": body([*RIGHT, {"index": 3, "embedding": RIGHT[0]["embedding"]}]),
    "index twice": body(_but(1, index=0)),
    "index missing": body([{"embedding": one["embedding"]} for one in RIGHT]),
    "index too large": body(_but(2, index=3)),
    "index negative": body(_but(2, index=-1)),
    "index a word": body(_but(2, index="2")),
    "index true": body(_but(1, index=True)),
    "index a fraction": body(_but(2, index=2.0)),
    "too few dimensions": body(_but(2, embedding=compact(vector("x")[:-1]))),
    "too many dimensions": body([one | {"embedding": [0.5] * (DIMENSIONS + 1)} for one in RIGHT]),
    "no dimensions": body([one | {"embedding": []} for one in RIGHT]),
    "embedding missing": body(_but(0, embedding=None)),
    "not base64": body(_but(0, embedding="*" * 40)),
    "not whole numbers of base64": body(_but(0, embedding=compact([0.5] * DIMENSIONS)[:-4])),
    "nested": body(_but(0, embedding=[[0.5] * DIMENSIONS])),
    "words": body(_but(0, embedding=["0.5"] * DIMENSIONS)),
    "truths": body(_but(0, embedding=[True] * DIMENSIONS)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_answers(endpoint: StandIn, remote: RemoteEngine, clock: Clock, wrong: str) -> None:
    """A wrong answer is engine trouble, and no vector comes of it; the next right one is taken."""
    endpoint.script.append(Answer(200, WRONG[wrong]))
    with pytest.raises(EngineTrouble) as caught:
        remote.forward(TEXTS, SHAPE)
    assert "text" not in str(caught.value).replace("for 3 texts", "")
    assert len(endpoint.calls) == 1
    assert clock.waits == []
    np.testing.assert_array_equal(remote.forward(TEXTS, SHAPE), [vector(text) for text in TEXTS])


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_answers_at_the_start(endpoint: StandIn, clock: Clock, wrong: str) -> None:
    """An endpoint that never answers rightly gives no engine."""
    endpoint.usual = always(Answer(200, WRONG[wrong]))
    with pytest.raises(EngineTrouble, match="at the start"):
        start(endpoint, clock)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), None, 1e300])
def test_no_number_for_one_text(endpoint: StandIn, remote: RemoteEngine, number: float | None) -> None:
    """A text whose vector is no number is told apart from the others, which keep theirs."""
    bad: list[float | None] = [*vector(TEXTS[1]).tolist()]
    bad[7] = number
    holed = bad if number is None or number == 1e300 else compact(bad)
    endpoint.script.append(Answer(200, body(_but(1, embedding=holed))))
    vectors = remote.forward(TEXTS, SHAPE)
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_array_equal(vectors[[0, 2]], [vector(TEXTS[0]), vector(TEXTS[2])])
    assert [call.texts for call in endpoint.calls] == [list(TEXTS), [PROBE]]


def test_no_number_for_any_text(endpoint: StandIn, remote: RemoteEngine, clock: Clock) -> None:
    """An endpoint without a number for a plain text is broken: no text is to blame."""

    def broken(call: Call) -> Answer:
        nothing = compact([float("nan")] * DIMENSIONS)
        return Answer(200, body([{"index": i, "embedding": nothing} for i in range(len(call.texts))]))

    endpoint.usual = broken
    with pytest.raises(EngineTrouble, match="no numbers"):
        remote.forward(TEXTS, SHAPE)
    with pytest.raises(EngineTrouble, match="no numbers"):
        start(endpoint, clock)


PASSING = {
    **{
        str(status): Answer(status, b'{"error": {}}')
        for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)
    },
    "hangs up": Answer(None),
    "breaks off": Answer(200, b'{"data": [', promised=100),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_passes(endpoint: StandIn, remote: RemoteEngine, clock: Clock, trouble: str) -> None:
    """It is waited out, longer each time."""
    endpoint.script.extend([PASSING[trouble]] * 3)
    np.testing.assert_array_equal(remote.forward(TEXTS, SHAPE), [vector(text) for text in TEXTS])
    assert clock.waits == [0.25, 0.5, 1.0]
    assert [call.texts for call in endpoint.calls] == [list(TEXTS)] * 4


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_stays(endpoint: StandIn, remote: RemoteEngine, clock: Clock, trouble: str) -> None:
    """Patience ends, and no text is blamed."""
    endpoint.usual = always(PASSING[trouble])
    with pytest.raises(EngineTrouble):
        remote.forward(TEXTS, SHAPE)
    assert clock.waits[:5] == [0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_retry_after(endpoint: StandIn, remote: RemoteEngine, clock: Clock, status: int) -> None:
    """What the endpoint asks for is never undercut, as seconds or as a date; nonsense is passed over."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    for said in ("7", soon, "soon", "-1", "nan", "inf"):
        endpoint.script.append(Answer(status, headers={"Retry-After": said}))
        clock.waits.clear()
        remote.forward(TEXTS, SHAPE)
        low, high = {"7": (7.0, 8.75), soon: (15.0, 25.0)}.get(said, (0.25, 0.25))
        assert low <= clock.waits[0] <= high, said


def test_retry_after_beyond_the_limit(endpoint: StandIn, remote: RemoteEngine, clock: Clock) -> None:
    """Nobody waits past the time limit of a call: whoever holds the work hears how long it will be."""
    endpoint.usual = always(Answer(429, headers={"Retry-After": "3600"}))
    with pytest.raises(EngineTrouble) as caught:
        remote.forward(TEXTS, SHAPE)
    assert caught.value.retry_after == 3600
    assert clock.waits == []
    assert len(endpoint.calls) == 1


def test_the_limit_holds_for_all_tries(endpoint: StandIn, clock: Clock) -> None:
    """The tries of one call together stay within its time limit, those of several parts too."""
    remote = start(endpoint, clock, timeout="20", rows="1")
    endpoint.usual = always(Answer(503, headers={"Retry-After": "6"}))
    begun = clock.now
    with pytest.raises(EngineTrouble):
        remote.forward(TEXTS, SHAPE)
    assert clock.now - begun <= 20
    endpoint.usual = lambda call: Answer(200, reply(call))
    endpoint.script.extend([Answer(503, headers={"Retry-After": "15"})] * 2)
    begun = clock.now
    with pytest.raises(EngineTrouble):
        remote.forward(TEXTS, SHAPE)
    assert clock.now - begun <= 20


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "EMBATCH_ENGINE_KEY"),
        (403, "EMBATCH_ENGINE_KEY"),
        (404, "--engine-url"),
        (405, "405"),
        (307, "307"),
    ],
)
def test_trouble_of_our_own(
    endpoint: StandIn, remote: RemoteEngine, clock: Clock, status: int, hint: str
) -> None:
    """A wrong key or address is not tried again, and no redirect takes the key elsewhere."""
    endpoint.usual = always(Answer(status, headers={"Location": endpoint.url}))
    with pytest.raises(EngineTrouble, match=hint):
        remote.forward(TEXTS, SHAPE)
    assert len(endpoint.calls) == 1
    assert clock.waits == []
    with pytest.raises(EngineTrouble, match=hint):
        start(endpoint, clock)


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_text_it_refuses(endpoint: StandIn, remote: RemoteEngine, status: int) -> None:
    """The rows it is among are refused, so that the caller can find it; the others have vectors."""
    endpoint.usual = lambda call: Answer(status) if TEXTS[1] in call.texts else Answer(200, reply(call))
    for rows in (TEXTS, TEXTS[:2], TEXTS[1:2]):
        with pytest.raises(RowsRefused, match=str(status)):
            remote.forward(rows, SHAPE)
    np.testing.assert_array_equal(remote.forward(TEXTS[::2], SHAPE), [vector(text) for text in TEXTS[::2]])


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_an_endpoint_that_refuses_everything(
    endpoint: StandIn, remote: RemoteEngine, clock: Clock, status: int
) -> None:
    """It blames no text: a plain one is refused as well."""
    endpoint.usual = always(Answer(status))
    with pytest.raises(EngineTrouble):
        remote.forward(TEXTS, SHAPE)
    with pytest.raises(EngineTrouble, match="at the start"):
        start(endpoint, clock)


def test_nobody_there(clock: Clock) -> None:
    """A port nobody listens on is trouble after patience, and the message names no address of a key."""
    with standing_in() as gone:
        pass
    with pytest.raises(EngineTrouble, match="cannot be reached"):
        start(gone, clock)
    assert len(clock.waits) == 5


def test_an_answer_that_never_ends(
    endpoint: StandIn, remote: RemoteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer beyond every size is not held in memory."""
    monkeypatch.setattr(endpoint_module, "ANSWER_BYTES", 100_000)
    endpoint.script.append(Answer(200, b" " * 1_000_000))
    with pytest.raises(EngineTrouble, match="too large"):
        remote.forward(TEXTS, SHAPE)


def test_an_answer_that_trickles(endpoint: StandIn) -> None:
    """Bytes that keep coming do not extend the time limit."""

    class Running(Clock):
        """A clock that every look moves."""

        step = 0.0

        def look(self) -> float:
            self.now += self.step
            return self.now

    running = Running()
    remote = start(endpoint, running, timeout="20")
    running.step = 1.0
    endpoint.usual = always(Answer(200, b" " * (16 << 20)))
    with pytest.raises(EngineTrouble, match="too slow"):
        remote.forward(TEXTS, SHAPE)
    remote.close()


def test_nothing_is_told(endpoint: StandIn, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key nor a text gets into a message or a log, however things go."""
    caplog.set_level(logging.DEBUG)
    remote = start(endpoint, clock)
    echo = [f"no {word}: {TEXTS[0]} {KEY}".encode() for word in ("good", "model")]
    said = []
    for answer in (Answer(400, echo[0]), Answer(500, echo[1]), Answer(200, echo[0]), Answer(401, echo[0])):
        endpoint.script.extend([answer] * (6 if answer.status == 500 else 1))
        with pytest.raises((EngineTrouble, RowsRefused)) as caught:
            remote.forward(TEXTS, SHAPE)
        said.append(str(caught.value))
    told = "".join(said) + caplog.text + repr(remote.describe()) + repr(vars(remote))
    assert len(said) == 4
    assert KEY not in told
    assert TEXTS[0] not in told
