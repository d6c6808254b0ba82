"""Compose the service from its parts and run it until a signal, its last client's leave, or broken storage.

data folder locked → store, engines, service, app → socket bound → listening, and noted in the folder
first signal → no new connections, running answers finished → running micro-batch finished, the rest
released → exit 0; second signal → exit at once, nothing lost: what was not committed is done again
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import sys
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import uvicorn

from embatch.api.app import create_app
from embatch.api.limits import Bounds, guarded
from embatch.api.private import Attached
from embatch.engine.models import DEFAULT_MODEL, Catalog, serve_model
from embatch.errors import InvalidArgument
from embatch.pool import LocalPool
from embatch.server import folder, logs
from embatch.service import Service
from embatch.settings import Settings
from embatch.store.blobs import Blobs
from embatch.store.store import Store

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DONE: Final = 0
BROKEN: Final = 74
"""Exit code when a commit's fate is unknown (EX_IOERR): the next start finds out."""
TAKEN: Final = 75
"""Exit code when another service holds the data folder (EX_TEMPFAIL)."""

_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than any sensible poll interval, so that pollers keep their connection."""
_OPEN_FILES: Final = 16_384
_ANSWER_SECONDS: Final = 3
"""How long running answers may take once the service is to end; an open stream would hold it for ever."""

_log = logging.getLogger("embatch.server")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `embatch serve` was told."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    socket: Path | None = None
    """Listen on this Unix socket instead of host and port."""
    models: tuple[str, ...] = ()
    """Folders or Hub names, the first is the default; empty for the default model alone."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    engine: str = "auto"
    engine_url: str | None = None
    engine_options: Mapping[str, str] = field(default_factory=dict)
    precision: str = "auto"
    threads: int = 0
    """0 takes the setting `threads`."""
    private: bool = False
    """End when no client is attached; listens on a socket of its own unless one is named."""
    insecure_no_auth: bool = False
    hosts: tuple[str, ...] = ()
    """Names beyond those of the loopback address by which a service on it may be called, as by a proxy."""


def serve(options: ServeOptions) -> int:
    """Run the service until it is told to end; return its exit code: 0, or one of those named above.

    Raises:
        InvalidArgument: an option cannot be; nothing was started.
        NotFound: a model is not there; the message names the command that gets it.
        Unavailable: the address is taken.
    """
    _check_address(options)
    settings = Settings.read(os.environ)
    settings = replace(settings, threads=options.threads or settings.threads)
    _allow_many_connections()
    os.umask(0o077)  # texts, vectors and the socket are the owner's alone
    logs.configure()
    place = options.data.expanduser().absolute()
    try:
        with folder.locked(place):
            return _serve(options, settings, place)
    except folder.FolderTaken as taken:
        print(f"embatch: {taken}", file=sys.stderr)  # noqa: T201  (for the person who typed the command)
        return TAKEN


def _allow_many_connections() -> None:
    """Raise the soft limit of open files, often 1,024, as the system allows: pollers keep theirs open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _serve(options: ServeOptions, settings: Settings, place: Path) -> int:
    listener = _bind(options, place)
    try:
        with _parts(options, settings, place) as (service, store):
            return asyncio.run(_Process(options, settings, service, store).run(place, listener))
    finally:
        listener.stream.close()
        listener.remove()


def _check_address(options: ServeOptions) -> None:
    if options.socket is not None or options.private or options.insecure_no_auth or _loopback(options.host):
        return
    raise InvalidArgument(
        f"{options.host} can be reached by others and this service asks for no key: listen on 127.0.0.1 or "
        "a socket, or say --insecure-no-auth",
        field="--host",
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(options: ServeOptions, place: Path) -> folder.Listener:
    if options.socket is not None:
        return folder.bind_unix(options.socket.expanduser().absolute())
    if options.private:
        return folder.bind_unix(folder.own_socket(place))
    return folder.bind_tcp(options.host, options.port)


@contextlib.contextmanager
def _parts(options: ServeOptions, settings: Settings, place: Path) -> Iterator[tuple[Service, Store]]:
    catalog = Catalog(
        [
            serve_model(
                model,
                engine=options.engine,
                precision=options.precision,
                threads=settings.threads,
                url=options.engine_url,
                options=options.engine_options,
            )
            for model in options.models or (DEFAULT_MODEL,)
        ],
        options.aliases,
    )
    blobs = Blobs(place)
    blobs.ensure_layout()
    store = Store.open(f"sqlite:///{place / 'embatch.db'}")
    pool = LocalPool(settings)
    try:
        service = Service(store, blobs, catalog, pool, settings, now=_now)
        yield service, store
    finally:
        pool.close(0.0)
        store.close()


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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()


class _Process:
    """The running service: its HTTP server, its signals, its end."""

    def __init__(self, options: ServeOptions, settings: Settings, service: Service, store: Store) -> None:
        self._options = options
        self._settings = settings
        self._service = service
        self._store = store
        self._attached = Attached(self._leave) if options.private else None
        self._leaving = False

    async def run(self, place: Path, listener: folder.Listener) -> int:
        """Serve until told to leave; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(logs.report_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        self._server = _Uvicorn(self._config(listener))
        self._remove_traces = contextlib.ExitStack()
        with self._remove_traces:
            serving = asyncio.create_task(self._server.serve(sockets=[listener.stream]))
            listening = asyncio.create_task(self._server.listening.wait())
            await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                self._remove_traces.enter_context(folder.noted(place, listener))
                if self._attached is not None:
                    self._attached.begin()
                _log.info("listening", extra={"fields": {"address": listener.address, "pid": os.getpid()}})
                self._watch_store(loop)
            await serving
            await asyncio.to_thread(self._service.close, self._settings.drain_seconds)
        _log.info("ended", extra={"fields": {"storage": "broken" if self._store.broken else "good"}})
        return BROKEN if self._store.broken else DONE

    def _config(self, listener: folder.Listener) -> uvicorn.Config:
        # Only browsers are fooled by a name, and only an address on this machine alone has no other guard.
        options = self._options
        named = listener.path is None and _loopback(options.host)
        bounds = Bounds.of(self._settings, (options.host, *options.hosts) if named else None)
        return uvicorn.Config(
            create_app(self._service, self._settings, attached=self._attached),
            http=guarded(bounds),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_ANSWER_SECONDS,
        )

    def _leave(self) -> None:
        """Begin the graceful end. Repeating is safe."""
        self._leaving = True
        self._server.should_exit = True
        if self._attached is not None:
            self._attached.end()

    def _signalled(self, number: int) -> None:
        if not self._leaving:
            _log.info("leaving", extra={"fields": {"signal": number}})
            self._leave()
            return
        _log.warning("leaving at once", extra={"fields": {"signal": number}})
        self._remove_traces.close()
        # Engine processes end with this one; whatever was not committed waits in the store.
        os._exit(128 + number)

    def _watch_store(self, loop: asyncio.AbstractEventLoop) -> None:
        def watch() -> None:
            self._store.broken_signal.wait()
            _log.critical("a commit failed in storage and its fate is unknown: the next start finds out")
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._leave)

        threading.Thread(target=watch, name="storage-watch", daemon=True).start()
