"""The model that a command names, and how the local service shall compute it: served before it is asked."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from cyclopts import Parameter

from embatch.cli.display import download_bar, report
from embatch.cli.serving import EngineName, EngineOptions, Precision, pairs
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from embatch.client.client import Client
    from embatch.wire.private import ModelAnswer

_LINE_SECONDS: Final = 5.0


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class EngineFlags:
    """How the local service shall compute a model."""

    engine: EngineName = "auto"
    engine_option: EngineOptions = None
    precision: Precision = "auto"

    def check(self, to: str) -> None:
        """Refuse what cannot be, before any service is asked. Raises InvalidArgument."""
        given = {
            "--engine": self.engine != "auto",
            "--engine-option": bool(self.engine_option),
            "--precision": self.precision != "auto",
        }
        if not any(given.values()):
            return
        if to != "local":
            flag = next(name for name, here in given.items() if here)
            raise InvalidArgument(
                f"{flag} is for the local service: whoever runs {to} chooses its engines", field=flag
            )
        from embatch.engine.models import check_engine  # noqa: PLC0415  (start-up time of --help)

        check_engine(self.engine, self.precision)
        pairs(self.engine_option, "--engine-option")

    def default(self, model: str | None) -> bool:
        """Return whether the default model is meant, by the engine that is chosen for it."""
        return model is None and self == EngineFlags()

    def served(self, service: Client, to: str, model: str | None) -> str | None:
        """Return the name to ask a target for; the local one fetches the model's files first, and loads it.

        `None`, where nothing was said, stays `None`: the target's first model.
        """
        if to != "local" or self.default(model):
            return model
        from embatch.client.serving import serve_model  # noqa: PLC0415  (as above)

        kept = "what was fetched stays in the Hub's cache, and the same command goes on"
        with Fetching(model or "the model") as fetching:
            try:
                return serve_model(
                    service,
                    model,
                    engine=self.engine,
                    precision=self.precision,
                    options=pairs(self.engine_option, "--engine-option"),
                    on_progress=fetching,
                )
            except KeyboardInterrupt as stopped:
                if fetching.begun:
                    stopped.add_note(kept)
                raise


class Fetching:
    """Shows how far the files of a model are: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._said = clock()
        self._bar = download_bar() if sys.stderr is not None and sys.stderr.isatty() else None
        self.begun = False
        """Whether any byte has come."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, answer: ModelAnswer) -> None:
        """Show how far they are. Before the first byte there is nothing to show."""
        fetched, total = answer.fetched_bytes, answer.total_bytes
        if not fetched:
            return
        first, self.begun = not self.begun, True
        if self._bar is not None:
            if first:
                self._bar.start()
                self._bar.add_task(f"fetching {self._name}", total=total)
            self._bar.update(self._bar.tasks[0].id, completed=fetched, total=total)
        elif first or self._clock() - self._said >= _LINE_SECONDS:
            self._said = self._clock()
            of = "" if total is None else f" of {total / 1e6:,.1f}"
            report(f"fetching {self._name}: {fetched / 1e6:,.1f}{of} MB")
