"""The running service: its HTTP server, its signals, its end.

Everything heavy that answering takes is imported with this module, so the engine can load meanwhile: see
`start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import uvicorn

from embatch import wire
from embatch.api.app import create_app
from embatch.api.limits import Bounds
from embatch.api.private import Attached
from embatch.events import (
    DatabaseLost,
    ServiceEnded,
    ServiceLeaving,
    ServiceLeavingAtOnce,
    ServiceLingers,
    ServiceListening,
    StorageBroken,
    emit,
)
from embatch.server import compose, folder, logs
from embatch.server.http_protocol import guarded

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from embatch.engine.models import Catalog
    from embatch.pool.local import LocalPool
    from embatch.server.keys import KeyFile
    from embatch.server.storage import Storage
    from embatch.service.application import Service
    from embatch.service.registry import Registry
    from embatch.settings import Settings
    from embatch.store.store import Store

DONE: Final = 0
BROKEN: Final = 74
"""Exit code when a commit's fate is unknown, or the database lost (EX_IOERR): the next start finds out."""

_TICK_SECONDS: Final = 0.1
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than any sensible poll interval, so that pollers keep their connection."""
_ANSWER_SECONDS: Final = 3
"""How long running answers may take once the service is to end; an open stream would hold it for ever."""


@dataclass(frozen=True, slots=True)
class ProcessParts:
    """What a service is made of."""

    storage: Storage
    """Data folder and database, held."""
    settings: Settings
    catalog: Catalog
    pool: LocalPool
    listener: folder.Listener
    hosts: tuple[str, ...] | None
    """Names by which it may be called; `None`: any."""
    private: bool
    """Whether it ends some time after its last client."""
    vectors: Mapping[str, str] | None
    """What its vectors depend on and a client would set too; `None` where whoever started it said more."""
    keys: KeyFile | None = None
    """By which it may be called; `None`: it asks for none."""


def run(parts: ProcessParts) -> int:
    """Serve until a signal, the last client's leave, or broken storage; return the exit code."""
    store, blobs = parts.storage.open()
    try:
        _leave_when_lost(parts.storage, store)
        held = compose.Held(store, blobs, parts.catalog, parts.pool, parts.settings, _now)
        held.recover()
        with contextlib.ExitStack() as ending:
            registry = None
            if parts.private:
                registry = compose.registry(held, parts.storage.place, parts.pool.renew)
                ending.callback(registry.close)
            sweeps = () if registry is None else (registry.sweep,)
            cache = parts.storage.place / "cache"
            service = compose.service(held, compose.dispatcher(held), cache, sweeps=sweeps)
            service.start()
            return asyncio.run(_Process(parts, service, store, registry).run())
    finally:
        store.close()


def _leave_when_lost(storage: Storage, store: Store) -> None:
    """Have the service end when the database is not its own alone any more."""

    def lost() -> None:
        emit(DatabaseLost())
        store.give_up()

    if storage.sole_use is not None:
        storage.sole_use.watch(lost)


def _now() -> datetime:
    return datetime.now(UTC)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signals: it raises again what it caught, so a graceful stop would exit with -15."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_Process`."""
        yield

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.attended = asyncio.Event()
        """Not set while nobody is there, and nothing has to be looked after ten times a second."""
        self.attended.set()

    async def main_loop(self) -> None:
        """Look, as uvicorn does, whether to end, and what time it is for the answers' heads."""
        counter = 0
        while not await self.on_tick(counter):
            await asyncio.sleep(_TICK_SECONDS)
            counter += 1
            if not self.attended.is_set():
                await self.attended.wait()
                counter = 0  # which has it look what time it is

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()


class _Process:
    """The running service: its HTTP server, its signals, its end."""

    def __init__(
        self, parts: ProcessParts, service: Service, store: Store, registry: Registry | None
    ) -> None:
        self._parts, self._service, self._store = parts, service, store
        self._registry = registry
        linger = parts.settings.linger_seconds
        attached = Attached(self._leave, self._attended, lambda: service.working, linger_seconds=linger)
        self._attached = attached if parts.private else None
        self._leaving = False
        self._instance = secrets.token_hex(16)

    async def run(self) -> int:
        """Serve until told to leave; return the exit code."""
        listener = self._parts.listener
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(logs.report_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Whoever started us may have had them ignored: nohup does, and a shell for what runs behind it.
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._signalled, number)
        keys = self._parts.keys
        if keys is not None:
            loop.add_signal_handler(signal.SIGHUP, keys.read_again)
            keys.read_again()  # they may have changed while nobody could hear of it
        self._server = _Uvicorn(self._config())
        self._remove_traces = contextlib.ExitStack()
        with self._remove_traces:
            serving = asyncio.create_task(self._server.serve(sockets=[listener.stream]))
            listening = asyncio.create_task(self._server.listening.wait())
            await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                about = folder.About(self._instance, private=self._parts.private, vectors=self._parts.vectors)
                self._remove_traces.enter_context(folder.noted(self._parts.storage.place, listener, about))
                if self._attached is not None:
                    self._attached.begin()
                emit(ServiceListening(address=listener.address, pid=os.getpid()))
                self._watch_store(loop)
                # What a start leaves behind stays: to walk it again and again would stop all threads.
                gc.collect()
                gc.freeze()
            await serving
            await asyncio.to_thread(self._service.close, self._parts.settings.drain_seconds)
        emit(ServiceEnded(storage="broken" if self._store.broken else "good"))
        return BROKEN if self._store.broken else DONE

    def _config(self) -> uvicorn.Config:
        settings = self._parts.settings
        bounds, keys = Bounds.of(settings, self._parts.hosts), self._parts.keys
        return uvicorn.Config(
            create_app(self._service, settings, attached=self._attached, registry=self._registry),
            http=guarded(bounds, None if keys is None else keys.access),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            headers=[(wire.INSTANCE, self._instance)],
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_ANSWER_SECONDS,
        )

    def _attended(self, somebody: bool) -> None:  # noqa: FBT001  (a callback)
        """Rest while nobody is attached: begin nothing, and wake for nothing."""
        if somebody:
            self._server.attended.set()
            self._service.resume()
        else:
            emit(ServiceLingers(seconds=self._parts.settings.linger_seconds))
            self._service.pause()
            self._server.attended.clear()

    def _leave(self) -> None:
        """Begin the graceful end. Repeating is safe."""
        self._leaving = True
        self._server.should_exit = True
        self._server.attended.set()
        if self._attached is not None:
            self._attached.end()

    def _signalled(self, number: int) -> None:
        if not self._leaving:
            emit(ServiceLeaving(signal=number))
            self._leave()
            return
        emit(ServiceLeavingAtOnce(signal=number))
        self._remove_traces.close()
        # Engine processes end with this one; whatever was not committed waits in the store.
        os._exit(128 + number)

    def _watch_store(self, loop: asyncio.AbstractEventLoop) -> None:
        def watch() -> None:
            self._store.broken_signal.wait()
            emit(StorageBroken())
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._leave)

        threading.Thread(target=watch, name="storage-watch", daemon=True).start()
