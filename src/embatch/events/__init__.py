"""What a service tells of: frozen values, and `emit`, which hands each to all who subscribed.

One class an event. The log is the first subscriber (`server/logs.py` writes its lines); whoever counts, shows
or sends events is another, and no caller of `emit` knows of it:

    unsubscribe = subscribe(lambda event: counts.update([event.words]))

No text of a user, no vector and no key enters an event: ids, names, sizes and our own words do. An exception
may quote a user, so of it nothing but its type and the places it passed leaves the process.
"""

from __future__ import annotations

from embatch.events.emitting import FailureEvent, Level, ServiceEvent, SubscriberFailed, emit, log, subscribe
from embatch.events.of_process import (
    AnswerTorn,
    AnswerTornByFault,
    BugAnswered,
    DatabaseLost,
    FaultAnswered,
    KeysInClear,
    KeysNotRead,
    KeysRead,
    LoopFailed,
    RequestEnded,
    RequestRefused,
    ServiceEnded,
    ServiceLeaving,
    ServiceLeavingAtOnce,
    ServiceLingers,
    ServiceListening,
    StorageBroken,
)
from embatch.events.of_work import (
    BatchModelChanged,
    CacheFull,
    ClockSet,
    EngineEnded,
    EngineGivenUp,
    EngineReady,
    EngineUnloaded,
    FileNotPlanned,
    FileWaits,
    ModelNamed,
    ModelReplaced,
    NotCached,
    PayloadLost,
    SlotPaused,
    SweepFailed,
    WorkPaused,
)

__all__ = [
    "AnswerTorn",
    "AnswerTornByFault",
    "BatchModelChanged",
    "BugAnswered",
    "CacheFull",
    "ClockSet",
    "DatabaseLost",
    "EngineEnded",
    "EngineGivenUp",
    "EngineReady",
    "EngineUnloaded",
    "FailureEvent",
    "FaultAnswered",
    "FileNotPlanned",
    "FileWaits",
    "KeysInClear",
    "KeysNotRead",
    "KeysRead",
    "Level",
    "LoopFailed",
    "ModelNamed",
    "ModelReplaced",
    "NotCached",
    "PayloadLost",
    "RequestEnded",
    "RequestRefused",
    "ServiceEnded",
    "ServiceEvent",
    "ServiceLeaving",
    "ServiceLeavingAtOnce",
    "ServiceLingers",
    "ServiceListening",
    "SlotPaused",
    "StorageBroken",
    "SubscriberFailed",
    "SweepFailed",
    "WorkPaused",
    "emit",
    "log",
    "subscribe",
]
