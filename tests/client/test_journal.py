"""Plain submits to a provider without idempotency keys: paid once, whatever is lost, killed or said twice."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import pytest
from client_scripts import both, wired
from fake_gemini import KEY, FakeGemini, problem
from hypothesis import given
from hypothesis import strategies as st

from embatch import (
    AlreadyExists,
    AsyncClient,
    Batch,
    Client,
    ConnectionFailed,
    DataLoss,
    EmbatchError,
    Unavailable,
)
from embatch.client import flows
from embatch.client.base import set_environment
from embatch.client.calls import Call, Environment, Reply, Work
from embatch.client.flows import BatchOptions, RequestDefaults
from embatch.client.journal import KEPT, Journal, Record, read
from embatch.client.paid_once import OUTCOME_UNKNOWN
from embatch.client.retry import Session
from embatch.client.targets import resolve
from embatch.client.unknown_fate import OLD, UnknownCreate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEXTS = ["one", "two words"]
MANY = [f"text {number}" for number in range(1_200)]
NOW = float(round(time.time()))
"""About when the system dates the files that are made here."""


@dataclass
class Faulty:
    """A Gemini that loses replies of creates, and lists late."""

    fake: FakeGemini = field(default_factory=FakeGemini)
    lost: int = 0
    """Replies of creates still to be lost, after the batch was made."""
    unheard: int = 0
    """Creates still to be lost on their way there."""
    late: int = 0
    """Lists still to come that hold nothing."""
    creates: int = 0
    lists: int = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request, or not."""
        if request.url.path.endswith(":asyncBatchEmbedContent"):
            if self.unheard:
                self.unheard -= 1
                raise httpx2.ReadError("lost on its way")
            reply = self.fake(request)
            self.creates += reply.status_code == 200
            if self.lost:
                self.lost -= 1
                raise httpx2.ReadError("lost on its way back")
            return reply
        if request.method == "GET" and request.url.path.endswith("/batches"):
            self.lists += 1
            if self.late:
                self.late -= 1
                return httpx2.Response(200, json={})
        return self.fake(request)


@dataclass
class Date:
    """A date that moves when it is told to."""

    now: float = NOW

    def __call__(self) -> float:
        """Return it."""
        return self.now


@contextmanager
def client_of(service: Faulty, data: Path, date: Date | None = None, **options: Any) -> Iterator[Client]:
    """Return a client that waits for nothing."""
    with Client("gemini", http_client=wired(service), data=data, **{"api_key": KEY, **options}) as client:
        set_environment(client, Environment(chance=lambda: 0.0, date=date or Date()))
        yield client


def submitted(client: Client, texts: list[str] | None = None, **options: Any) -> Batch:
    """Submit as a program does."""
    return client.async_batch_embed_contents(texts or TEXTS, display_name="Test", **options)


def entries(data: Path) -> list[str]:
    """Return what stands in the journal."""
    return [path.read_text() for path in sorted((data / "journal").iterdir())]


@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize("texts", [TEXTS, MANY], ids=["inline", "file"])
def test_a_lost_reply_is_found_in_the_list(tmp_path: Path, texts: list[str], late: int) -> None:
    """By the same call, in both colours, also where the list is late; one batch is made."""
    services: list[Faulty] = []

    def service() -> Faulty:
        services.append(Faulty(lost=1, late=late))
        return services[-1]

    async def submit(client: AsyncClient) -> tuple[str, str | None]:
        batch = await client.async_batch_embed_contents(texts, display_name="Test")
        return batch.name, batch.display_name

    found, other = both(
        service,
        lambda client: ((batch := submitted(client, texts)).name, batch.display_name),
        submit,
        "gemini",
        api_key=KEY,
        data=tmp_path,
    )
    assert found == other == (next(iter(services[0].fake.jobs)), "Test")
    assert [(one.creates, one.lists) for one in services] == [(1, late + 1)] * 2
    assert entries(tmp_path) == []


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
def test_a_create_of_unknown_fate_is_repeated_only_once_it_is_sure(tmp_path: Path, heard: bool) -> None:  # noqa: FBT001
    """Until then every same call says that it is not known, since when, and what a second one would cost."""
    service, date = Faulty(lost=int(heard), unheard=int(not heard), late=6), Date()
    with client_of(service, tmp_path, date) as client:
        with pytest.raises(
            ConnectionFailed, match=r"not known whether .*\(2 requests.*journal=False"
        ) as first:
            submitted(client)
        assert (first.value.reason, first.value.retry_after) == (OUTCOME_UNKNOWN, OLD)
        assert service.lists == 4
        date.now += OLD - 1
    with client_of(service, tmp_path, date) as client:  # another process, say
        with pytest.raises(Unavailable, match="not known whether") as second:
            submitted(client)
        assert second.value.retry_after == 1
        date.now += 1
        service.late = 0
        batch = submitted(client)
        assert (batch.name, service.creates) == (next(iter(service.fake.jobs)), 1)
    assert entries(tmp_path) == []


def test_a_list_that_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    """A day later two of them, five minutes apart, are still wanted."""
    service, date = Faulty(unheard=1), Date()

    def down(request: httpx2.Request) -> httpx2.Response | None:
        return (
            problem(403, "PERMISSION_DENIED", "no lists") if request.url.path.endswith("/batches") else None
        )

    service.fake.faults.append(down)
    with client_of(service, tmp_path, date) as client:
        with pytest.raises(ConnectionFailed, match="not known whether"):
            submitted(client)
        date.now += 86_400
        with pytest.raises(Unavailable, match="not known whether") as error:
            submitted(client)
        assert error.value.retry_after == 300
        date.now += 300
        submitted(client)
    assert service.creates == 1


def test_a_known_batch_is_no_second_calls(tmp_path: Path) -> None:
    """Who submits the same again wants it twice; only one of unknown fate answers, and only once."""
    service = Faulty()
    with client_of(service, tmp_path) as client:
        assert submitted(client).name != submitted(client).name
        service.lost = 1
        found = submitted(client)
        assert submitted(client).name != found.name
    assert service.creates == 4
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "other",
    [
        {"texts": ["one", "two word"]},
        {"texts": ["one two", "words"]},
        {"task_type": "CLUSTERING"},
        {"output_dimensionality": 8},
        {"priority": 1},
        {"idempotency_key": "mine"},
    ],
    ids=str,
)
def test_another_submit_does_not_answer(tmp_path: Path, other: dict[str, Any]) -> None:
    """Its texts, options or key tell it apart from one of unknown fate; a display name does not."""
    service = Faulty(unheard=1)
    with client_of(service, tmp_path) as client:
        with pytest.raises(ConnectionFailed):
            submitted(client)
        submitted(client, **other)
        with pytest.raises(Unavailable, match="not known whether"):
            client.async_batch_embed_contents(TEXTS, display_name="Another")
    with (
        client_of(service, tmp_path, api_key="other") as client,
        pytest.raises(EmbatchError, match="API key"),
    ):
        submitted(client)  # of another account: it gets as far as the service
    assert service.creates == 1


def test_a_key_gives_the_first_batch_again(tmp_path: Path) -> None:
    """For a week and from any process; other requests under it are refused, a deleted batch is made anew."""
    service, date = Faulty(lost=1), Date()
    with client_of(service, tmp_path, date) as client:
        first = submitted(client, idempotency_key="mine")
        assert first.name == submitted(client, idempotency_key="mine").name
        with pytest.raises(AlreadyExists, match="idempotency_key"):
            submitted(client, ["other"], idempotency_key="mine")
        assert submitted(client, ["other"], idempotency_key="other").name != first.name
    with client_of(service, tmp_path, date) as client:
        assert first.name == submitted(client, idempotency_key="mine").name
        client.delete_batch(first)
        second = submitted(client, idempotency_key="mine")
        assert submitted(client, idempotency_key="mine").name == second.name
        date.now = os.stat(next((tmp_path / "journal").iterdir())).st_mtime + KEPT + 60  # noqa: PTH116
        third = submitted(client, idempotency_key="mine")
    assert service.creates == 4
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3


def test_what_was_refused_is_in_no_doubt(tmp_path: Path) -> None:
    """Nothing is listed; the next call sends it, and finds its upload again."""
    service = Faulty()
    refusal = problem(400, "FAILED_PRECONDITION", "no billing")

    def refuse(request: httpx2.Request) -> httpx2.Response | None:
        return refusal if request.url.path.endswith(":asyncBatchEmbedContent") else None

    service.fake.faults.append(refuse)
    with client_of(service, tmp_path) as client:
        with pytest.raises(EmbatchError, match="no billing"):
            submitted(client, MANY)
        submitted(client, MANY)
    assert (service.creates, service.lists, len(service.fake.sessions)) == (1, 0, 1)


@pytest.mark.parametrize(("key", "batches"), [("mine", 1), (None, 2)])
def test_two_at_once(tmp_path: Path, key: str | None, batches: int) -> None:
    """With one key they get one batch, for which the later waits; without, each is a submit of its own."""
    service, sent, on = Faulty(), threading.Event(), threading.Event()
    names: list[str] = []

    def held(request: httpx2.Request) -> httpx2.Response | None:
        if not request.url.path.endswith(":asyncBatchEmbedContent"):
            return None
        service.fake.faults.clear()
        sent.set()
        assert on.wait(60)
        return None

    def submit() -> None:
        with client_of(service, tmp_path) as client:
            names.append(submitted(client, idempotency_key=key).name)

    service.fake.faults.append(held)
    first, second = threading.Thread(target=submit), threading.Thread(target=submit)
    first.start()
    assert sent.wait(60)
    second.start()
    if key is None:
        second.join(60)
    on.set()
    first.join(60)
    second.join(60)
    assert (service.creates, len(set(names)), len(names)) == (batches, batches, 2)


def test_many_at_once_on_one_event_loop(tmp_path: Path) -> None:
    """Those who wait for a key hold no thread that its holder needs."""
    service = Faulty()

    async def main() -> set[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(service))
        async with http, AsyncClient("gemini", api_key=KEY, http_client=http, data=tmp_path) as client:
            options: dict[str, Any] = {"display_name": "Test", "idempotency_key": "mine"}
            calls = [client.async_batch_embed_contents(TEXTS, **options) for _ in range(6)]
            return {batch.name for batch in await asyncio.gather(*calls)}

    assert len(asyncio.run(main())) == service.creates == 1


def walked(service: Faulty, data: Path, texts: list[str], date: Date, steps: float) -> tuple[str | None, int]:
    """Submit as a process that is killed after so many steps; return the batch's name and the steps made.

    Half a step more: the last one is done, and the process hears nothing of it.
    """
    outside, target = (
        Environment(chance=lambda: 0.0, date=date),
        resolve("gemini", key=KEY, data=data, environ={}),
    )
    session = Session(target, outside, journal=Journal(data))
    flow = flows.submit(session, texts, RequestDefaults(), BatchOptions("Test"))
    made = 0
    try:
        step = next(flow)
        while made + 1 <= steps:
            made += 1
            step = flow.send(_done(step, service, session))
        if made < steps:
            _done(step, service, session)
    except StopIteration as stop:
        return stop.value.name, made
    finally:
        flow.close()
    return None, made


def _done(step: object, service: Faulty, session: Session) -> Reply:
    if isinstance(step, Work):
        step.do()
    if not isinstance(step, Call):
        return Reply()
    headers = {**({} if "://" in step.path else session.target.headers), **step.headers}
    url = session.target.at(step.path)
    reply = service(
        httpx2.Request(step.method, url, params=dict(step.query) or None, headers=headers, content=step.body)
    )
    return Reply(
        reply.status_code, {name.lower(): value for name, value in reply.headers.items()}, reply.content
    )


@pytest.mark.parametrize("half", [0.0, 0.5], ids=["before", "within"])
@pytest.mark.parametrize("texts", [TEXTS, MANY], ids=["inline", "file"])
def test_killed_at_any_step(tmp_path: Path, texts: list[str], half: float) -> None:
    """Before or within each step there is: the same call makes one batch in the end.

    But for the last one, after which the submit is forgotten: the next call is another one then.
    """
    _, every = walked(Faulty(), tmp_path / "whole", texts, Date(), math.inf)
    for steps in range(every - math.ceil(half)):
        service, date, name = Faulty(), Date(), None
        assert walked(service, tmp_path / f"{steps}", texts, date, steps + half)[0] is None
        for _ in range(3):
            with suppress(Unavailable):
                name, _ = walked(service, tmp_path / f"{steps}", texts, date, math.inf)
                break
            date.now += OLD
        assert [name] == list(service.fake.jobs), steps
        assert service.creates == 1
        assert entries(tmp_path / f"{steps}") == []


def test_no_key_stands_in_it(tmp_path: Path) -> None:
    """Neither the account's, nor the caller's, nor a text; and nobody else can read it."""
    service = Faulty(unheard=1)
    with client_of(service, tmp_path) as client:
        with pytest.raises(ConnectionFailed):
            submitted(client, ["canary-text"], idempotency_key="canary-key")
        submitted(client, idempotency_key="canary-key-2")
    assert len(entries(tmp_path)) == 2
    for path in (tmp_path / "journal").iterdir():
        said = path.name + path.read_text()
        assert KEY not in said
        assert "canary" not in said
        assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0


def test_what_cannot_be_written_down_is_not_sent(tmp_path: Path) -> None:
    """It says how to do without; so told, a client leaves nothing behind and may be refused no folder."""
    tmp_path.joinpath("journal").touch()
    service = Faulty()
    with client_of(service, tmp_path) as client:
        with pytest.raises(Unavailable, match=r"nothing was sent.*journal=False"):
            submitted(client)
        assert service.creates == 0
        submitted(client, journal=False)
    with client_of(service, tmp_path / "none", journal=False) as client:
        service.lost = 1
        with pytest.raises(ConnectionFailed) as error:
            submitted(client, idempotency_key="mine")
        assert error.value.reason is None
    assert not (tmp_path / "none").exists()
    with client_of(service, tmp_path / "one", journal=False) as client:
        submitted(client, idempotency_key="mine", journal=True)
    assert len(entries(tmp_path / "one")) == 1


LINES = b"".join(
    orjson.dumps(line) + b"\n"
    for line in (
        {"begun": {"version": 1, "fingerprint": "f" * 32, "content": "c"}},
        {"intent": {"at": 5.5}},
        {"missed": {"at": 7}},
        {"created": {"batch": "batches/b"}},
    )
)
AFTER = [
    Record(),
    Record("f" * 32, "c"),
    Record("f" * 32, "c", UnknownCreate(5.5)),
    Record("f" * 32, "c", UnknownCreate(5.5, 7, 7)),
    Record("f" * 32, "c", None, "batches/b"),
]


@given(st.integers(0, len(LINES)))
def test_a_torn_entry_says_what_its_whole_lines_say(cut: int) -> None:
    """Cut anywhere."""
    whole = LINES[:cut].count(b"\n")
    record, size = read(LINES[:cut], "entry")
    assert record == AFTER[whole]
    assert size == sum(map(len, LINES.splitlines(keepends=True)[:whole]))


def test_a_torn_entry_goes_on(tmp_path: Path) -> None:
    """What comes next takes the place of the torn line."""
    journal = Journal(tmp_path)
    entry = journal.take("m", NOW, keyed=True)
    assert entry is not None
    entry.begin("f" * 32, "c")
    entry.close()
    (path,) = (tmp_path / "journal").iterdir()
    with path.open("ab") as file:
        file.write(b'{"intent": {"at"')
    entry = journal.take("m", NOW, keyed=True)
    assert entry is not None
    assert entry.record == AFTER[1]
    entry.intend(5.5)
    entry.close()
    assert read(path.read_bytes(), "entry")[0] == AFTER[2]


@pytest.mark.parametrize(
    "line", [b"\xff\n", b"{}\n", b"[]\n", b'{"intent": {}}\n', b'{"intent": {"at": "now"}}\n']
)
def test_a_damaged_entry_is_no_reason_to_pay_again(tmp_path: Path, line: bytes) -> None:
    """Nothing is sent, and it says where and what to do; after a week it goes like any other."""
    service, date = Faulty(unheard=1), Date()
    with client_of(service, tmp_path, date) as client:
        with pytest.raises(ConnectionFailed):
            submitted(client)
        (path,) = (tmp_path / "journal").iterdir()
        content = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([content[0], line, *content[1:]]))
        with pytest.raises(DataLoss, match=r"damaged at line 2, so nothing was sent: remove it"):
            submitted(client)
        assert service.creates == 0
        date.now = path.stat().st_mtime + KEPT + 60
        submitted(client)
    assert service.creates == 1


def test_an_entry_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """It may say what this version does not know."""
    service = Faulty(unheard=1)
    with client_of(service, tmp_path) as client:
        with pytest.raises(ConnectionFailed):
            submitted(client)
        (path,) = (tmp_path / "journal").iterdir()
        path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
        with pytest.raises(EmbatchError, match="another version of embatch: nothing was sent"):
            submitted(client)
    assert service.creates == 0


def taken(journal: Journal, match: str, *, keyed: bool) -> Callable[[], None]:
    """Take an entry that must be there to be taken; return what closes it."""
    entry = journal.take(match, NOW, keyed=keyed)
    assert entry is not None
    return entry.close


def test_an_entry_is_one_callers(tmp_path: Path) -> None:
    """With a key the next one has to wait; without, he gets another; what is closed can be taken again."""
    journal = Journal(tmp_path)
    close = taken(journal, "key", keyed=True)
    assert journal.take("key", NOW, keyed=True) is None
    close()
    taken(journal, "key", keyed=True)()
    closes = [taken(journal, "content", keyed=False) for _ in range(3)]
    assert len(list((tmp_path / "journal").glob("content-*"))) == 3
    closes[1]()
    taken(journal, "content", keyed=False)()
    assert len(list((tmp_path / "journal").glob("content-*"))) == 3
    closes[0]()
    closes[2]()
