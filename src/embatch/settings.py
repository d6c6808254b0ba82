"""Every knob of the service: one table of name, default, unit and help.

A setting is read in `cli` and `server` only and passed on as a value. Each can be given in the environment
as `EMBATCH_` and its name in capitals (`EMBATCH_BATCH_EXPIRY=3600`). `docs/operations.md` lists them; a
test holds the page and this table together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "EMBATCH_"
MOST: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bytes": 1 << 50,
        "seconds": 10 * 365 * 86_400,
        "requests": 10**9,
        "tokens": 10**9,
        "headers": 10**6,
        "connections": 10**6,
        "claims": 10**6,
        "threads": 10**4,
        "niceness": 19,
    }
)
"""Largest value by unit: beyond it dates, waits and counts of the system overflow long after the start."""

_OF_ENGINES: Final[Mapping[str, str]] = MappingProxyType({"EMBATCH_AMX": "auto", "EMBATCH_AMX_LIBRARY": ""})
"""Variables that an engine reads itself and that change vectors, with what counts where they are not set."""


def _setting(default: float, unit: str, text: str, *, of_vectors: bool = False) -> Any:
    return field(default=default, metadata={"unit": unit, "help": text, "of_vectors": of_vectors})


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's settings, each with unit and help in its field's metadata."""

    inline_bytes: int = _setting(20 << 20, "bytes", "Largest body of a request that is not a file upload.")
    inline_requests: int = _setting(10_000, "requests", "Most requests in one inline batch.")
    interactive_requests: int = _setting(
        100, "requests", "Most requests of one call that are embedded at once."
    )
    file_bytes: int = _setting(2 << 30, "bytes", "Largest input file.")
    file_requests: int = _setting(1_000_000, "requests", "Most requests in one input file.")
    line_bytes: int = _setting(2 << 20, "bytes", "Longest line of a JSONL file; a longer one fails alone.")
    text_bytes: int = _setting(1 << 20, "bytes", "Longest text in UTF-8; a longer one fails alone.")
    header_bytes: int = _setting(16 << 10, "bytes", "Largest head of an HTTP request.")
    header_count: int = _setting(100, "headers", "Most headers of an HTTP request.")
    receive_seconds: float = _setting(
        30.0, "seconds", "A client that sends or takes nothing for so long is dropped."
    )
    body_seconds: float = _setting(
        300.0, "seconds", "Longest time for a body or an answer, and as long for each inline_bytes of it."
    )
    held_bytes: int = _setting(
        256 << 20, "bytes", "Bodies in memory at once, over all connections; beyond it 503 OVERLOADED."
    )
    connections: int = _setting(
        10_000, "connections", "Connections at once: idle ones end for new ones, then 503 OVERLOADED."
    )
    batch_expiry: float = _setting(48 * 3600.0, "seconds", "An unfinished batch becomes EXPIRED at this age.")
    retention: float = _setting(
        30 * 86400.0, "seconds", "A final batch and its results are deleted at this age."
    )
    file_expiry: float = _setting(48 * 3600.0, "seconds", "An uploaded file is deleted at this age.")
    micro_batch_tokens: int = _setting(4096, "tokens", "Padded tokens of one forward pass.", of_vectors=True)
    micro_batch_seconds: float = _setting(
        120.0, "seconds", "A micro-batch that runs longer counts as a hang."
    )
    heartbeat_seconds: float = _setting(30.0, "seconds", "An engine process silent for so long is replaced.")
    engine_start_seconds: float = _setting(
        300.0, "seconds", "An engine that needs longer to load is given up."
    )
    suspect_attempts: int = _setting(3, "claims", "A shard claimed so often without a commit is quarantined.")
    drain_seconds: float = _setting(30.0, "seconds", "Longest wait for the running micro-batch at SIGTERM.")
    linger_seconds: float = _setting(
        60.0,
        "seconds",
        "A private service stays so long after its last client, engines loaded, and works nothing.",
    )
    threads: int = _setting(0, "threads", "Threads of the bulk engine process; 0 for one per core.")
    engine_bytes: int = _setting(
        0, "bytes", "Memory of loaded engines; 0 for half of what the machine or its control group has."
    )
    bulk_nice: int = _setting(
        19, "niceness", "Niceness of bulk engine processes; the query lane keeps its own."
    )

    free_bytes: int = _setting(
        16 << 20,
        "bytes",
        "With less free on the data folder's disk nothing new is accepted: 503 STORAGE_LOW.",
    )
    cache_bytes: int = _setting(
        4 << 30, "bytes", "Vectors kept to answer the texts of later runs; 0 keeps none."
    )

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """Return the defaults with what the environment overrides.

        Raises:
            InvalidArgument: a value is not a number, negative, or beyond `MOST`; `field` names the variable.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            variable = PREFIX + setting.name.upper()
            if variable not in environ:
                continue
            kind: type[float] = type(getattr(cls(), setting.name))
            try:
                value = kind(environ[variable])
            except ValueError:
                value = -1
            unit = setting.metadata["unit"]
            if not 0 <= value <= MOST[unit]:  # NaN fails here too
                raise InvalidArgument(
                    f"{variable} must be a number of {unit} from 0 to {MOST[unit]:,}", field=variable
                )
            values[setting.name] = value
        return cls(**values)


def vector_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return by variable what vectors depend on: services that differ in one may compute others.

    The number of threads is not among them, for each works whole micro-batches by itself. Models, with
    engine, precision and options, are none of a service's settings: whoever asks for one says which.

    Raises:
        InvalidArgument: as `Settings.read`, for these variables alone.
    """
    names = {PREFIX + one.name.upper(): one.name for one in fields(Settings) if one.metadata["of_vectors"]}
    settings = Settings.read({name: environ[name] for name in names if name in environ})
    engines = {name: environ.get(name) or left for name, left in _OF_ENGINES.items()}
    return {name: str(getattr(settings, field_)) for name, field_ in names.items()} | engines


def digest(values: Mapping[str, str]) -> str:
    """Return what tells settings apart: equal for equal ones, whatever their order."""
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()


def installation() -> str:
    """Return what tells installed copies of embatch apart, an upgraded one from itself before.

    A service that runs on while its files are replaced imports from both.
    """
    code = Path(__file__)
    found = code.stat()
    return hashlib.sha256(f"{code} {found.st_mtime_ns} {found.st_size}".encode()).hexdigest()
