"""Start the service and run it until a signal, its last client's leave, or broken storage.

keys read → data folder locked, and the database → socket bound → engine loading, apart → store, service,
app → listening, and noted in the folder
first signal → no new connections, running answers finished → running micro-batch finished, the rest
released → exit 0; second signal → exit at once, nothing lost: what was not committed is done again
with keys a hang-up is no end: they are read again
"""

from __future__ import annotations

import ipaddress
import os
import resource
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from embatch.engine.models import DEFAULT_MODEL, Catalog, serve_model
from embatch.errors import InvalidArgument, NotFound
from embatch.escapes import visible
from embatch.events import KeysInClear, emit
from embatch.ownership import Taken
from embatch.pool.local import LocalPool
from embatch.server import folder, logs, storage
from embatch.settings import Settings, vector_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from embatch.server.keys import KeyFile
    from embatch.server.storage import Storage

TAKEN: Final = 75
"""Exit code when another service holds the data folder or the database (EX_TEMPFAIL)."""

_OPEN_FILES: Final = 16_384


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `embatch serve` was told."""

    data: Path
    database: str | None = None
    """Address of a Postgres database, without a password; `None`: that of the environment, else SQLite in the
    data folder."""
    blobs: Path | None = None
    """Folder for texts and embeddings beside a Postgres database; `None`: the data folder."""
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
    preload: bool = True
    """Load the engine of the default model at once; else when it is needed."""
    private: bool = False
    """End when no client is attached; listens on a socket of its own unless one is named."""
    api_keys: Path | None = None
    """File of the keys by which the service may be called; `None`: it asks for none."""
    insecure_no_auth: bool = False
    hosts: tuple[str, ...] = ()
    """Names beyond those of the loopback address by which a service on it may be called, as by a proxy."""


def serve(options: ServeOptions) -> int:
    """Run the service until it is told to end; return its exit code: 0, `TAKEN`, or `process.BROKEN`.

    Raises:
        InvalidArgument: an option cannot be; nothing was started.
        NotFound: a model is not there; the message names the command that gets it.
        Unavailable: the address is taken, or the database cannot be reached.
        FailedPrecondition: the database is not the one whose files the folder holds.
    """
    _check_address(options)
    keys = _keys(options)
    if options.private and options.database is not None:
        raise InvalidArgument("a private service has its database in its folder", field=storage.FLAG)
    database = None if options.private else storage.database_address(options.database, os.environ)
    if options.blobs is not None and database is None:
        raise InvalidArgument(f"--blobs goes with {storage.FLAG}: else all is in --data", field="--blobs")
    settings = Settings.read(os.environ)
    settings = replace(settings, threads=options.threads or settings.threads)
    _allow_many_connections()
    os.umask(0o077)  # texts, vectors and the socket are the owner's alone
    logs.configure()
    place = options.data.expanduser().absolute()
    files = None if options.blobs is None else options.blobs.expanduser().absolute()
    try:
        with storage.held(place, files, database) as held:
            return _serve(options, settings, held, keys)
    except Taken as taken:
        print(f"embatch: {visible(str(taken))}", file=sys.stderr)  # noqa: T201  (for the person who typed the command)
        return TAKEN


def _allow_many_connections() -> None:
    """Raise the soft limit of open files, often 1,024, as the system allows: pollers keep theirs open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _serve(options: ServeOptions, settings: Settings, held: Storage, keys: KeyFile | None) -> int:
    listener = _bind(options, held.place)
    if keys is not None and listener.path is None and not _loopback(options.host):
        emit(KeysInClear())
    pool = LocalPool(settings)
    try:
        catalog = _catalog(options, settings)
        if options.preload and len(catalog):
            pool.begin(catalog.default)
        # Half of the time to the first vector: this takes two seconds, the engine loads in another process.
        from embatch.server.process import ProcessParts, run  # noqa: PLC0415

        # Only browsers are fooled by a name, and only an address on this machine alone has no other guard.
        named = listener.path is None and _loopback(options.host) and keys is None
        hosts = (options.host, *options.hosts) if named else None
        # A private service that was given models is somebody's own, as `embatch serve` is: clients take it.
        theirs = options.private and not options.models
        vectors = vector_settings(os.environ) if theirs else None
        return run(
            ProcessParts(held, settings, catalog, pool, listener, hosts, options.private, vectors, keys)
        )
    finally:
        pool.close(0.0)
        listener.stream.close()
        listener.remove()


def _catalog(options: ServeOptions, settings: Settings) -> Catalog:
    served = (
        serve_model(
            model,
            engine=options.engine,
            precision=options.precision,
            threads=settings.threads,
            url=options.engine_url,
            options=options.engine_options,
        )
        for model in options.models or (DEFAULT_MODEL,)
    )
    try:
        return Catalog(list(served), options.aliases)
    except NotFound as error:
        if not options.private or options.models:
            raise
        # Whoever started it may have another model in mind.
        return Catalog([], without=error.message)


def _keys(options: ServeOptions) -> KeyFile | None:
    if options.api_keys is None:
        return None
    from embatch.server.keys import KeyFile  # noqa: PLC0415  (the private service, which asks for none, is in a hurry)

    return KeyFile(options.api_keys)


def _check_address(options: ServeOptions) -> None:
    if options.api_keys is not None:
        for given, flag in ((options.private, "--private"), (options.insecure_no_auth, "--insecure-no-auth")):
            if given:
                raise InvalidArgument(f"--api-keys and {flag} exclude each other: leave one out", field=flag)
        return
    if options.socket is not None or options.private or options.insecure_no_auth or _loopback(options.host):
        return
    raise InvalidArgument(
        f"{options.host} can be reached by others and this service asks for no key: give it a file of keys "
        "(--api-keys), listen on 127.0.0.1 or a socket, or say --insecure-no-auth",
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
