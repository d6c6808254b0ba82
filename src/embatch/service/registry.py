"""The models that clients of a private service ask for: found, fetched, named for good, and served.

A name is durable before a client hears it, with what it stands for; the Hub's commit is a part of that, and
counts from then on. It stays as long as a batch has it, and a day after it was last asked for: somebody may
be about to submit.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch.engine.fetching import Fetch
from embatch.engine.models import ModelFiles
from embatch.engine.references import ModelReference, state_of
from embatch.errors import DataLoss, EmbatchError, NotFound, Unavailable
from embatch.events import ModelNamed, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from embatch.engine.models import Catalog, ServedModel
    from embatch.store.model_names import ModelNames

ASKED_SECONDS: Final = 86_400.0
"""How long a name stays that was asked for and that no batch has."""
_NOTED_SECONDS: Final = 3_600.0
"""How exactly it is known when a name was last asked for."""
WANTED_SECONDS: Final = 10.0
"""Without a word from whoever waits for a fetch, it is ended."""
_AGAIN_SECONDS: Final = 60.0
"""Between two tries to fetch files that batches wait for and that are gone from this machine."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What becomes of a model that was asked for."""

    name: str | None
    """By which it is served; `None` while its files are fetched."""
    fetched: int = 0
    """Bytes so far."""
    total: int | None = None
    """Bytes in all; `None` as long as nobody knows."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a name stands for."""

    reference: ModelReference
    found: ModelFiles | None
    asked: float
    """When it was last asked for, in seconds since 1970."""

    def written(self) -> dict[str, Any]:
        """Return it as JSON."""
        found = self.found
        files = found and {"path": str(found.path), "commit": found.commit, "pinned": found.pinned}
        return {**asdict(self.reference), "found": files, "asked": self.asked}

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> _Kept:
        """Return what stands in the file. Raises DataLoss."""
        try:
            fields = dict(said)
            found, asked = fields.pop("found"), float(fields.pop("asked"))
            files = None if found is None else ModelFiles(**{**found, "path": Path(found["path"])})
            return cls(ModelReference(**fields), files, asked)
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss("models.json in the data folder holds a model that is none: remove it") from error


@dataclass(slots=True, eq=False)
class _Waiting:
    """A fetch that somebody waits for."""

    heard: float
    """When somebody last asked how far it is; infinite where batches wait for it."""
    fetch: Fetch = field(init=False)


@dataclass(slots=True)
class Registry:
    """What grows the catalog of a private service.

    Every method blocks and is safe to call from any thread.
    """

    catalog: Catalog
    names: ModelNames
    renew: Callable[[ServedModel], object]
    """Told of a model whose files have changed since it was served: engines have to load them anew."""
    threads: int = 0
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _states: dict[str, str] = field(default_factory=dict)
    """What the folders looked like when they were served, by name."""
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    """By the digest of what was asked for."""
    _lacking: dict[str, str] = field(default_factory=dict)
    """Names that cannot be served just now, and why."""
    _tried: dict[str, float] = field(default_factory=dict)
    """When files that had gone were last fetched, by name."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def restore(self, named: Collection[str]) -> None:
        """Serve again what an earlier service named, before anything is worked. Once.

        Args:
            named: the models that batches have. What none has and nobody asked for within a day is forgotten.

        Raises:
            DataLoss: what the names stand for is damaged.
            Unavailable: it cannot be read or written just now.
        """
        with self._lock:
            found = {name: _Kept.read(said) for name, said in self.names.read().items()}
            oldest = self.now() - ASKED_SECONDS
            self._kept = {name: kept for name, kept in found.items() if name in named or kept.asked > oldest}
            if len(self._kept) < len(found):
                with suppress(Unavailable):  # on a full disk they are forgotten later
                    self._write()
            for name in self._kept:
                self._look_for(name)

    def serve(self, reference: ModelReference) -> Serving:
        """Serve a model; its name is durable on return. While its files are fetched, ask again.

        Repeating is safe.

        Raises:
            InvalidArgument: the field that is wrong; or the model needs remote code or pickle.
            NotFound: neither served, nor a folder, nor on the Hub (MODEL_NOT_FOUND).
            DataLoss: a file of a pinned model is not what it has to be.
            Unavailable: the disk has no room for its name, or no process can be started.
        """
        try:
            return self._served(reference)
        except NotFound as error:
            # Without the reason a client would take it for an address that there is not.
            raise NotFound(error.message, field="model", reason="MODEL_NOT_FOUND") from error

    def sweep(self) -> None:
        """Look again for files that batches wait for. Repeating is safe."""
        with self._lock:
            for name in list(self._lacking):
                self._look_for(name)

    def close(self) -> None:
        """End what is being fetched. Repeating is safe."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.fetch.cancel()

    def _served(self, reference: ModelReference) -> Serving:
        if reference.plain and reference.name is not None:
            try:
                self.catalog.resolve(reference.name)
            except NotFound:
                kept = self._kept.get(reference.name.removeprefix("models/"))
                if kept is not None and kept.reference.folder is not None:  # it says what is missing
                    raise
            else:
                self._note_asked(reference.name)
                return Serving(reference.name)
        reference = reference.checked()
        with self._lock:
            known = next((name for name, kept in self._kept.items() if kept.reference == reference), None)
            if known is not None and reference.folder is None and known not in self._lacking:
                self._note_asked(known)
                return Serving(known)
            if reference.folder is not None or reference.engine == "hashing":
                return Serving(self._name(reference, known, None))
            return self._fetched(reference, known)

    def _fetched(self, reference: ModelReference, known: str | None) -> Serving:
        """Return how far the fetch of a Hub name is; it is begun where there is none."""
        waiting = self._waiting.get(reference.digest)
        if waiting is None:
            before = None if known is None else self._kept[known].found
            waiting = self._begin(reference, reference.revision if before is None else before.commit)
        waiting.heard = max(waiting.heard, self.monotonic())
        if not waiting.fetch.done:
            return Serving(None, waiting.fetch.fetched, waiting.fetch.total)
        return Serving(self._name(reference, known, self._ended(reference)))

    def _begin(self, reference: ModelReference, revision: str | None, heard: float = 0.0) -> _Waiting:
        waiting = self._waiting[reference.digest] = _Waiting(max(heard, self.monotonic()))
        waiting.fetch = Fetch(
            reference.name or "", revision, lambda: self.monotonic() - waiting.heard < WANTED_SECONDS
        )
        return waiting

    def _ended(self, reference: ModelReference) -> ModelFiles:
        """Return what a fetch that has ended gave; the next one begins anew. Raises as `Fetch.result`."""
        return self._waiting.pop(reference.digest).fetch.result()

    def _name(self, reference: ModelReference, known: str | None, found: ModelFiles | None) -> str:
        """Serve a model whose files are there, its name durable; return the name."""
        name = known or reference.served_name({model.name for model in self.catalog} | self._kept.keys())
        model = reference.serve(name, found, self.threads)
        kept = self._kept.get(name)
        if kept is None or kept.found != found:
            before = self._kept
            self._kept = {**before, name: _Kept(reference, found, self.now())}
            try:
                self._write()
            except EmbatchError:
                self._kept = before
                raise
            where = reference.folder or reference.name or ""
            emit(ModelNamed(model=name, of=where, commit=None if found is None else found.commit))
        else:
            self._note_asked(name)
        self._put(model)
        return name

    def _put(self, model: ServedModel) -> None:
        """Have a model served, and its engines loaded anew where its files have changed."""
        state = state_of(Path(model.spec.model))
        before = self._states.get(model.name)
        self.catalog.put(model)
        self._lacking.pop(model.name, None)
        self._states[model.name] = state
        if before is not None and before != state:
            self.renew(model)

    def _look_for(self, name: str) -> None:
        """Serve a name of before again, or say why it cannot be."""
        kept = self._kept[name]
        found = kept.found
        try:
            if found is not None and not found.path.is_dir():
                found = self._found_again(name, kept.reference, found)
            self._put(kept.reference.serve(name, found, self.threads))
        except EmbatchError as error:
            self._lacking[name] = error.message
            self.catalog.lack(name, f"{name} cannot be served just now: {error.message}")
            return
        if found != kept.found:
            self._keep(name, replace(kept, found=found))

    def _found_again(self, name: str, reference: ModelReference, found: ModelFiles) -> ModelFiles:
        """Return the files of a recorded commit, which have gone from this machine and batches wait for.

        Raises NotFound while they are fetched, and what went wrong with that.
        """
        waiting = self._waiting.get(reference.digest)
        if waiting is None:
            now = self.monotonic()
            if now < self._tried.get(name, -math.inf) + _AGAIN_SECONDS:
                raise NotFound(self._lacking[name])
            self._tried[name] = now
            waiting = self._begin(reference, found.commit, math.inf)
        if not waiting.fetch.done:
            raise NotFound("its files have gone from this machine, and are fetched again")
        return self._ended(reference)

    def _note_asked(self, name: str) -> None:
        """Take note of when a name was asked for; that it is known to the hour will do."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None and self.now() - kept.asked >= _NOTED_SECONDS:
                self._keep(name, replace(kept, asked=self.now()))

    def _keep(self, name: str, kept: _Kept) -> None:
        """Keep what is new of a name that is durable already; where that cannot be written, it can wait."""
        self._kept[name] = kept
        with suppress(Unavailable):
            self._write()

    def _write(self) -> None:
        self.names.write({name: kept.written() for name, kept in self._kept.items()})
