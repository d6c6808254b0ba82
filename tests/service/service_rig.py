"""A service over a real store and real files, with a clock to turn and a pool that does as it is told.

rig = Rig(folder)
batch = rig.service.submit_inline(Draft(), rows(3))
rig.until(lambda: rig.service.get(batch.name).done)  # awaits the store's and the pool's signals
rig.restart()  # the same folder, another service
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from service_world import Clock

from embatch.backoff import patience
from embatch.engine import hashing
from embatch.engine.models import Catalog, ServedModel
from embatch.engine.protocol import EngineSpec, Shape, computed_by
from embatch.pool.protocol import Origin, Referenced
from embatch.server import compose
from embatch.service.sweeps import SWEEP_SECONDS
from embatch.settings import Settings
from embatch.shard import COMPUTED_BY, Done, RequestRow, results_schema
from embatch.store.blobs import FolderBlobs
from embatch.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.batch import Batch
    from embatch.engine.protocol import Description
    from embatch.errors import EngineTrouble
    from embatch.pool.protocol import EngineStatus, Pool
    from embatch.store.records import BatchRecord, Claim, Committed, PayloadShard, ResultShard

DIMENSIONS = 8
MODEL = ServedModel(
    "test", EngineSpec("hashing", "test", options={"dimensions": str(DIMENSIONS)}), DIMENSIONS
)
OTHER = ServedModel("other", EngineSpec("hashing", "other", options={"dimensions": "4"}), 4)
WITHIN = 120.0
"""Seconds after which a wait has failed; a busy machine needs a fraction of it."""


def quick(failures: int) -> float:
    """Return the seconds of a back-off that a test can wait for."""
    return 0.001


class Signals:
    """Wakes whoever waits for something to be true, after everything that may have made it so."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def tell(self) -> None:
        """Say that something changed."""
        with self._changed:
            self._changed.notify_all()

    def until(self, true: Callable[[], object]) -> None:
        """Wait until something is true; fail after `WITHIN` seconds."""
        deadline = time.monotonic() + WITHIN
        with self._changed:
            while not true():
                assert time.monotonic() < deadline, "it did not become true"
                # Not everything that may make it true is told of.
                self._changed.wait(timeout=0.05)


class WatchedStore(Store):
    """The real store; it tells after each write, and tests may do things before and after a method."""

    signals: Signals
    before: dict[str, Callable[[], None]]
    after: dict[str, Callable[[], None]]

    def _around(self, name: str, run: Callable[[], Any]) -> Any:
        self.before.get(name, _nothing)()
        try:
            found = run()
        finally:
            self.signals.tell()
        self.after.get(name, _nothing)()
        return found

    def accept(self, new: Any, shards: Sequence[PayloadShard]) -> tuple[BatchRecord, bool]:
        """As `Store.accept`."""
        found: tuple[BatchRecord, bool] = self._around("accept", lambda: Store.accept(self, new, shards))
        return found

    def claim(self, now: datetime, **left_out: Any) -> Claim | None:
        """As `Store.claim`."""
        found: Claim | None = self._around("claim", lambda: Store.claim(self, now, **left_out))
        return found

    def release(self, claim: Claim, **more: Any) -> bool:
        """As `Store.release`."""
        return bool(self._around("release", lambda: Store.release(self, claim, **more)))

    def commit(self, claim: Claim, result: ResultShard, now: datetime) -> Committed:
        """As `Store.commit`."""
        found: Committed = self._around("commit", lambda: Store.commit(self, claim, result, now))
        return found

    def plan(self, batch_id: str, shards: Sequence[PayloadShard], *, complete: bool, now: datetime) -> bool:
        """As `Store.plan`."""
        planned = self._around("plan", lambda: Store.plan(self, batch_id, shards, complete=complete, now=now))
        return bool(planned)

    def fail(self, batch_id: str, message: str, now: datetime) -> BatchRecord:
        """As `Store.fail`."""
        found: BatchRecord = self._around("fail", lambda: Store.fail(self, batch_id, message, now))
        return found


class WatchedBlobs(FolderBlobs):
    """The real blobs, taking part in tests before each write."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before_write: Callable[[str], None] = lambda _: None

    def write(self, relative: str, batch: pa.RecordBatch) -> str:
        """As `Blobs.write`."""
        self.before_write(relative)
        return super().write(relative, batch)


@dataclass
class ToldPool:
    """A pool in this process: hashing vectors, a few rows a micro-batch, which may have to be allowed.

    What it leaves of a shard that was stopped are the texts that were forwarded.
    """

    signals: Signals
    slots: int = 2
    """As `Pool.slots`."""
    rows_at_once: int = 4
    gated: bool = False
    """Whether each micro-batch waits for `allow`."""
    holds: bool = False
    """Whether the one that runs goes on whoever tells it to stop, as that of a real engine does."""
    failures: list[EngineTrouble | Exception] = field(default_factory=list)
    """Raised one after the other by the next calls."""
    ready: set[str] = field(default_factory=set)
    """Models that it says are loaded."""
    known: dict[str, str] = field(default_factory=dict)
    """What it tells of models that are in trouble."""
    wrong: list[pa.RecordBatch] = field(default_factory=list)
    """Returned one after the other by the next calls, whatever was asked."""
    broken: dict[str, EngineTrouble] = field(default_factory=dict)
    """Raised by every call for a model."""
    calls: list[tuple[str, list[str | None], bool]] = field(default_factory=list)
    """Every call: model, texts, suspect."""
    origins: list[Origin] = field(default_factory=list)
    """That of every call."""
    worked: Counter[str] = field(default_factory=Counter)
    """How often each text was forwarded."""
    micro_batches: int = 0
    running: int = 0
    _permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)

    def allow(self, micro_batches: int = 1) -> None:
        """Let so many micro-batches run."""
        if micro_batches:
            self._permits.release(micro_batches)

    def open(self) -> None:
        """Let everything run from now on."""
        self.gated = False
        self.allow(1000)

    def loaded(self) -> Collection[str]:
        """As `Pool.loaded`."""
        return set(self.ready)

    def describe(self, model: ServedModel) -> Description:
        """As `Pool.describe`."""
        if model.name in self.broken:
            raise self.broken[model.name]
        return hashing.load(model.spec).describe()

    def embed(
        self,
        model: ServedModel,
        requests: pa.RecordBatch,
        *,
        on_progress: Callable[[Done], None],
        stop: threading.Event,
        suspect: bool = False,
        origin: Origin | None = None,
    ) -> pa.RecordBatch | None:
        """As `Pool.embed`."""
        texts = requests.column("text").to_pylist()
        origin = origin or Origin()
        before, origin.kept = origin.kept, None
        kept = set[str | None]() if before is None else set(before.column("text").to_pylist())
        with self._lock:
            self.calls.append((model.name, texts, suspect))
            self.origins.append(origin)
            self.running += 1
            trouble = self.failures.pop(0) if self.failures else self.broken.get(model.name)
        self.signals.tell()
        try:
            if trouble is not None:
                raise trouble
            if self.wrong:
                return self.wrong.pop(0)
            sound = [at for at, text in enumerate(texts) if text is not None and text not in kept]
            on_progress(Done(len(texts) - len(sound)))
            for begin in range(0, len(sound), self.rows_at_once):
                group = sound[begin : begin + self.rows_at_once]
                if not self._may_go_on(stop):
                    if kept:
                        origin.kept = pa.RecordBatch.from_pydict({"text": sorted(map(str, kept))})
                    return None
                kept.update(texts[at] for at in group)
                with self._lock:
                    self.micro_batches += 1
                    self.worked.update(str(texts[at]) for at in group)
                on_progress(Done(len(group), len(group), 0.001 * len(group)))
                self.signals.tell()
            return embedded(model, requests)
        finally:
            with self._lock:
                self.running -= 1
            self.signals.tell()

    def _may_go_on(self, stop: threading.Event) -> bool:
        while self.holds or not stop.is_set():
            if self._closed.is_set() and not self.holds:
                return False
            if not self.gated:
                return True
            if self._permits.acquire(timeout=0.01):
                if not stop.is_set():
                    return True
                self._permits.release()  # heard while it waited: the permit is for the next one
        return False

    def reference(self, model: ServedModel, requests: pa.RecordBatch) -> Referenced:
        """As `Pool.reference`."""
        return Referenced(embedded(model, requests), requests.num_rows, 0.5, self.describe(model))

    def count(self, model: ServedModel, requests: pa.RecordBatch) -> NDArray[np.int32]:
        """As `Pool.count`: one token a text."""
        return np.ones(requests.num_rows, np.int32)

    def unbatched_cost(self, model: str) -> float | None:
        """As `Pool.unbatched_cost`."""
        return 0.002

    def troubles(self) -> Mapping[str, str]:
        """As `Pool.troubles`."""
        return dict(self.known)

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """As `Pool.query`."""
        if model.name in self.broken:
            raise self.broken[model.name]
        return embedded(model, requests)

    def status(self) -> Sequence[EngineStatus]:
        """As `Pool.status`."""
        return []

    def close(self, grace: float) -> None:
        """As `Pool.close`."""
        self._closed.set()


def embedded(model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
    """Return the results of a payload shard, as any pool must give them."""
    engine = hashing.load(model.spec)
    size = engine.describe().dimensions
    texts = requests.column("text").to_pylist()
    sound = [at for at, text in enumerate(texts) if text is not None]
    vectors = np.zeros((len(texts), size), np.float32)
    tokens = np.zeros(len(texts), np.int32)
    if sound:
        encoded = engine.encode([str(texts[at]) for at in sound])
        vectors[sound] = engine.forward(encoded.rows, Shape(len(sound), 512))
        tokens[sound] = encoded.lengths
    missing = np.ones(len(texts), np.bool_)
    missing[sound] = False
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), size, mask=pa.array(missing))
    columns = [
        requests.column("index"),
        embedding,
        pa.array(tokens),
        pa.array([False] * len(texts)),
        *(requests.column(name) for name in ("error_code", "error_reason", "error_message")),
    ]
    found = pa.RecordBatch.from_arrays(columns, schema=results_schema(size))
    return found.replace_schema_metadata({COMPUTED_BY: computed_by(engine.describe()).encode()})


class Rig:
    """One data folder and the service on it."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Settings | None = None,
        catalog: Catalog | None = None,
        pool: Callable[[Settings], Pool] | None = None,
        start: bool = True,
    ) -> None:
        """Serve with what `pool` makes at each start, or with a pool that does as it is told."""
        self.folder = folder
        self.settings = settings or Settings()
        self.catalog = catalog or Catalog([MODEL, OTHER])
        self.clock = Clock()
        self.signals = Signals()
        self.pool = ToldPool(self.signals)
        self._make_pool = pool
        self.patience: Callable[[int], float] = patience
        self.sweep_seconds = SWEEP_SECONDS
        """The back-off from the next failure on."""
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self._open = False
        if start:
            self.start()

    def start(self) -> None:
        """Start a service on the folder."""
        self.blobs = WatchedBlobs(self.folder)
        self.blobs.ensure_layout()
        self.store = WatchedStore.open(f"sqlite:///{self.folder / 'embatch.db'}")
        self.store.signals, self.store.before, self.store.after = self.signals, self.before, self.after
        pool = self.pool if self._make_pool is None else self._make_pool(self.settings)
        held = compose.Held(
            self.store,
            self.blobs,
            self.catalog,
            pool,
            self.settings,
            self.clock,
            monotonic=self.clock.monotonic,
            patience=lambda failures: self.patience(failures),  # noqa: PLW0108  (it may be changed later)
        )
        held.recover()
        self.dispatcher = compose.dispatcher(held)
        self.service = compose.service(
            held,
            self.dispatcher,
            self.folder / "cache",
            steady=self.clock.steady,
            sweep_seconds=self.sweep_seconds,
        )
        self.service.start()
        self._open = True

    def stop(self, grace: float = WITHIN) -> None:
        """Stop it gracefully. Repeating is safe."""
        if self._open:
            self._open = False
            self.service.close(grace)
            self.store.close()

    def restart(self, catalog: Catalog | None = None) -> None:
        """Stop the service and start another one, with a fresh pool."""
        self.stop()
        self.catalog = catalog or self.catalog
        self.pool = ToldPool(self.signals)
        self.start()

    def until(self, true: Callable[[], object]) -> None:
        """Wait until something is true; see `Signals`."""
        self.signals.until(true)

    def done(self, name: str) -> Batch:
        """Wait until a batch is final and return it."""
        self.until(lambda: self.service.get(name).done)
        return self.service.get(name)

    def upload(self, content: bytes, mime_type: str = "application/jsonl") -> str:
        """Upload a file and return its name."""
        token = self.service.uploads.begin(
            file_id=None, display_name=None, mime_type=mime_type, size=len(content)
        )
        self.service.uploads.append(token, 0, content)
        return f"files/{self.service.uploads.finish(token).id}"

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return all results of a batch."""
        return [row for part in self.service.results(name).parts for row in part.to_pylist()]

    def files(self) -> set[str]:
        """Return what stands in the data folder, but for the database."""
        folders = ("batches", "files", "uploads")
        return {
            str(path.relative_to(self.folder))
            for folder in folders
            for path in (self.folder / folder).rglob("*")
        }

    def claimed(self, name: str) -> int:
        """Return how many shards of a batch are claimed."""
        shards = self.store.shards(name.removeprefix("batches/"))
        return sum(shard.state == "claimed" for shard in shards)


def rows(count: int, prefix: str = "text", **more: Any) -> list[RequestRow]:
    """Return requests with texts and keys of their own."""
    return [RequestRow(f"{prefix} {at}", key=f"{prefix}-{at}", **more) for at in range(count)]


def large(shards: int, prefix: str = "large") -> list[RequestRow]:
    """Return requests that make so many shards, eight requests each."""
    return [
        RequestRow(f"{prefix} {shard}.{at} ".ljust(66_000, "x"), key=f"{prefix}-{shard}.{at}")
        for shard, at in itertools.product(range(shards), range(8))
    ]


def vector(text: str, model: ServedModel = MODEL) -> list[float]:
    """Return the vector that a text must have."""
    engine = hashing.load(model.spec)
    encoded = engine.encode([text])
    found: list[float] = engine.forward(encoded.rows, Shape(1, 512))[0].tolist()
    return found


def tree(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def together(count: int, work: Callable[[int], None]) -> None:
    """Run something in so many threads at once; the first exception fails the test."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(WITHIN)
            work(number)
        except BaseException as error:  # noqa: BLE001  (raised again below)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    if failures:
        raise failures[0]


def _nothing() -> None:
    pass
