"""The command `doctor`: what this machine has, which engine serves a model, and why not a faster one."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from embatch.cli.app import DONE, FAILED, app
from embatch.cli.display import json_line, say
from embatch.cli.serving import EngineName, EngineOptions, Precision, pairs
from embatch.errors import EmbatchError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class _Machine:
    processor: str
    cores: int
    amx: str
    """`usable`, or what stands against our own kernel."""


@dataclass(frozen=True, slots=True)
class _Served:
    model: str
    engine: str
    precision: str
    streams: int
    dimensions: int
    max_tokens: int
    invariant: bool
    seconds: float
    """Of loading, verifying included."""
    passed_over: dict[str, str]
    """The faster engines that were not taken, and what stood against each."""


@app.command
def doctor(
    *,
    model: Annotated[
        list[str] | None,
        Parameter(help="Folder or Hub name; repeatable, the default model without it.", negative=""),
    ] = None,
    engine: EngineName = "auto",
    engine_option: EngineOptions = None,
    precision: Precision = "auto",
    json: Annotated[bool, Parameter(help="One JSON object a line.", negative="")] = False,
) -> int:
    """Say what this machine has, load each model as the service would, and say which engine serves it."""
    try:
        from embatch.engine import amx, machine, models  # noqa: PLC0415  (start-up time of --help)
    except ModuleNotFoundError as missing:
        raise InvalidArgument(
            f'nothing is served here without {missing.name}: pip install "embatch[local]"', field="doctor"
        ) from missing

    about = _Machine(machine.processor(), machine.cores(), amx.unavailable() or "usable")
    _say(json=json, record=asdict(about), text=[f"{about.processor}, {about.cores} cores; AMX: {about.amx}"])
    code = DONE
    for reference in model or [models.DEFAULT_MODEL]:
        try:
            served = _load(reference, engine, precision, pairs(engine_option, "--engine-option"))
        except EmbatchError as error:
            code = FAILED
            record = {"model": reference, "error": error.message, "field": error.field}
            _say(json=json, record=record, text=("", reference, f"  cannot be served: {error.message}"))
        else:
            _say(json=json, record=asdict(served), text=_words(served))
    return code


def _load(reference: str, engine: str, precision: str, options: dict[str, str]) -> _Served:
    from embatch.engine.loading import choose  # noqa: PLC0415  (as above)
    from embatch.engine.models import serve_model  # noqa: PLC0415  (as above)

    found = serve_model(reference, engine=engine, precision=precision, options=options)
    begun = time.monotonic()
    loaded = choose(found.spec)
    seconds = time.monotonic() - begun
    about = loaded.engine.describe()
    loaded.engine.close()
    return _Served(
        found.name,
        about.engine,
        about.precision,
        about.streams,
        about.dimensions,
        about.max_tokens,
        about.invariant,
        round(seconds, 2),
        dict(loaded.passed_over),
    )


def _words(served: _Served) -> tuple[str, ...]:
    same = (
        "always: alone, in any company, on any thread, after a restart"
        if served.invariant
        else "in a run that is repeated or resumed; in other company they differ in the last digits"
    )
    engine = f"{served.engine}, {served.precision}, {served.streams} streams"
    return (
        "",
        f"{served.model}: {served.dimensions} dimensions, texts of up to {served.max_tokens} tokens",
        f"  engine    {engine}, loaded in {served.seconds:.1f} s",
        *(f"  not {name:<5} {problem}" for name, problem in served.passed_over.items()),
        f"  vectors   of a text have the same bytes {same}",
    )


def _say(*, json: bool, record: Mapping[str, object], text: Sequence[str]) -> None:
    for line in [json_line(record)] if json else text:
        say(line)
