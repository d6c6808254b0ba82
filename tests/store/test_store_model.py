"""The store against a small model of it: random lives of batches, compared after every step."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from storing import at, new_batch, open_store, payload, result

from embatch.errors import FailedPrecondition, IllegalTransition, NotFound
from embatch.states import Event, State, advance
from embatch.store.records import Claim, Committed

MEMORY = Path("/dev/shm")  # noqa: S108  (only its speed is wanted)


@functools.cache
def migrated() -> bytes:
    """Return the bytes of an empty database: copying it is faster than migrating for every life."""
    with tempfile.TemporaryDirectory() as folder:
        open_store(Path(folder)).close()
        return (Path(folder) / "embatch.db").read_bytes()


@dataclass(slots=True)
class Shard:
    """What the model knows of a shard."""

    requests: int
    state: str = "waiting"
    attempt: int = 0
    excused: int = 0
    failed: int = 0


@dataclass(slots=True)
class Model:
    """What the model knows of a batch. `turn` and `age` order claims; larger is later."""

    priority: int
    planned: bool
    turn: int
    age: int
    expires: int
    state: State = State.PENDING
    shards: list[Shard] = field(default_factory=list)

    def counts(self) -> tuple[int, int, int]:
        """Return (requests, successful, failed)."""
        done = [shard for shard in self.shards if shard.state == "done"]
        failed = sum(shard.failed for shard in done)
        return sum(s.requests for s in self.shards), sum(s.requests for s in done) - failed, failed

    def finish(self) -> None:
        """Complete if nothing is left to do."""
        if self.planned and self.state is State.PROCESSING and all(s.state == "done" for s in self.shards):
            self.state = advance(self.state, Event.FINISH)


class StoreAgainstModel(RuleBasedStateMachine):
    """Every verb of a batch's life in any order, each answer and the whole state compared with the model."""

    names = Bundle("names")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        (Path(self.folder.name) / "embatch.db").write_bytes(migrated())
        self.store = open_store(Path(self.folder.name))
        self.batches: dict[str, Model] = {}
        self.turn = 0
        self.count = 0

    def teardown(self) -> None:
        """Close and remove."""
        self.store.close()
        self.folder.cleanup()

    def _new(self, priority: int, expires: int, *, planned: bool) -> tuple[str, Model]:
        self.count += 1
        last = max((model.turn for model in self.batches.values()), default=0)
        return f"b{self.count}", Model(priority, planned, last, self.count, expires)

    @rule(target=names, shards=st.integers(1, 4), priority=st.integers(-1, 1), expires=st.integers(1, 5))
    def accept(self, shards: int, priority: int, expires: int) -> str:
        """An inline batch comes."""
        name, model = self._new(priority, expires, planned=True)
        model.shards = [Shard(number + 1) for number in range(shards)]
        new = new_batch(name, age=-self.count)
        object.__setattr__(new, "priority", priority)
        object.__setattr__(new, "expire_time", at(expires))
        self.store.accept(new, [payload(n, requests=n + 1) for n in range(shards)])
        self.batches[name] = model
        return name

    @rule(target=names, expires=st.integers(1, 5))
    def accept_file(self, expires: int) -> str:
        """A file batch comes, without shards."""
        name, model = self._new(0, expires, planned=False)
        new = new_batch(name, age=-self.count, input_file="f")
        object.__setattr__(new, "expire_time", at(expires))
        self.store.accept(new, [])
        self.batches[name] = model
        return name

    @rule(name=names, shards=st.integers(0, 2), complete=st.booleans())
    def plan(self, name: str, shards: int, complete: bool) -> None:  # noqa: FBT001  (hypothesis passes it by name)
        """Planning brings shards, and may end."""
        model = self.batches.get(name)
        there = 0 if model is None else len(model.shards)
        complete = complete and there + shards > 0  # an empty file fails its batch instead
        more = [payload(there + n, requests=n + 1) for n in range(shards)]
        planned = self.store.plan(name, more, complete=complete, now=at(0))
        assert planned == (model is not None and not model.planned and not model.state.final)
        if planned and model is not None:
            model.shards += [Shard(n + 1) for n in range(shards)]
            model.planned = complete
            model.finish()

    @rule(target=claims)
    def claim(self) -> object:
        """The next shard is claimed: of the highest priority, then the longest ago, then the oldest."""
        waiting = [
            (-m.priority, m.turn, m.age, name)
            for name, m in self.batches.items()
            if not m.state.final and any(s.state == "waiting" for s in m.shards)
        ]
        found = self.store.claim(at(0))
        if not waiting:
            assert found is None
            return multiple()
        assert found is not None
        name = min(waiting)[-1]
        model = self.batches[name]
        number = next(n for n, shard in enumerate(model.shards) if shard.state == "waiting")
        shard = model.shards[number]
        shard.state, shard.attempt = "claimed", shard.attempt + 1
        model.turn = max(m.turn for m in self.batches.values()) + 1
        if model.state is State.PENDING:
            model.state = advance(model.state, Event.CLAIM)
        assert (found.batch_id, found.number, found.attempt) == (name, number, shard.attempt)
        assert found.excused == shard.excused
        return found

    def _holds(self, claim: Claim) -> Shard | None:
        model = self.batches.get(claim.batch_id)
        if model is None or model.state.final:
            return None
        shard = model.shards[claim.number]
        return shard if (shard.state, shard.attempt) == ("claimed", claim.attempt) else None

    @rule(claim=claims, failed=st.integers(0, 1))
    def commit(self, claim: Claim, failed: int) -> None:
        """A claim is committed, perhaps late, perhaps again."""
        shard = self._holds(claim)
        committed = self.store.commit(claim, result(claim, failed=failed), at(0))
        if shard is not None:
            shard.state, shard.failed = "done", failed
            self.batches[claim.batch_id].finish()
        model = self.batches.get(claim.batch_id)
        assert committed == Committed(shard is not None, None if model is None else model.state)

    @rule(claim=consumes(claims), excused=st.booleans())
    def release(self, claim: Claim, excused: bool) -> None:  # noqa: FBT001  (as above)
        """A claim is given back, perhaps late."""
        shard = self._holds(claim)
        assert self.store.release(claim, excused=excused) == (shard is not None)
        if shard is not None:
            shard.state = "waiting"
            shard.excused += excused

    @rule()
    def start_again(self) -> None:
        """The service dies and starts again."""
        self.store.close()
        self.store = open_store(Path(self.folder.name))
        held = [
            shard
            for model in self.batches.values()
            if not model.state.final
            for shard in model.shards
            if shard.state == "claimed"
        ]
        assert self.store.release_all() == len(held)
        for shard in held:
            shard.state = "waiting"

    @rule(name=names, event=st.sampled_from([Event.CANCEL, Event.FAIL]))
    def stop(self, name: str, event: Event) -> None:
        """A batch is cancelled or fails."""
        model = self.batches.get(name)
        wrong: type[Exception] = NotFound if model is None else IllegalTransition
        stopped = False
        with contextlib.nullcontext() if self._active(model) else pytest.raises(wrong):
            if event is Event.CANCEL:
                self.store.cancel(name, at(0))
            else:
                self.store.fail(name, "why", at(0))
            stopped = True
        if model is not None and stopped:
            model.state = advance(model.state, event)

    @rule(seconds=st.integers(0, 3))
    def expire(self, seconds: int) -> None:
        """Time passes for some."""
        due = {n: m for n, m in self.batches.items() if self._active(m) and m.expires <= seconds}
        assert sorted(self.store.expire(at(seconds))) == sorted(due)
        for model in due.values():
            model.state = advance(model.state, Event.EXPIRE)

    @rule(name=names, priority=st.integers(-1, 1))
    def move(self, name: str, priority: int) -> None:
        """A batch gets another priority."""
        if name in self.batches:
            self.batches[name].priority = priority
            assert self.store.update(name, priority=priority, now=at(0)).priority == priority

    @rule(name=names)
    def delete(self, name: str) -> None:
        """A batch is deleted, if it may be."""
        model = self.batches.get(name)
        if model is None or self._active(model):
            with pytest.raises(NotFound if model is None else FailedPrecondition):
                self.store.delete(name)
        else:
            self.store.delete(name)
            del self.batches[name]

    def _active(self, model: Model | None) -> bool:
        return model is not None and not model.state.final

    @invariant()
    def the_same(self) -> None:
        """Store and model agree on every batch and shard; counts add up."""
        seen = {
            r.id: (r.state, r.priority, r.planned, (r.request_count, r.successful_count, r.failed_count))
            for r in self.store.list(1000, None)
        }
        assert seen == {n: (m.state, m.priority, m.planned, m.counts()) for n, m in self.batches.items()}
        for name, model in self.batches.items():
            assert [(s.state, s.attempt) for s in self.store.shards(name)] == [
                (s.state, s.attempt) for s in model.shards
            ]


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
