"""The threads of the application, made once: its faces share them, and none has a number of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from embatch.api.bodies import BodyThreads
from embatch.api.waiting import EngineThreads, ResultThreads


@dataclass(frozen=True, slots=True)
class Threads:
    """For what takes long, by what it waits for."""

    engines: EngineThreads = field(default_factory=EngineThreads)
    bodies: BodyThreads = field(default_factory=BodyThreads)
    results: ResultThreads = field(default_factory=ResultThreads)
