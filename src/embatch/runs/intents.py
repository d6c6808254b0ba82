"""What a run's ledger knows of each batch that was to be created where a submit has no idempotency key.

Pure: an intent is written down before its create goes out, and every later line about it moves it on.

    (nothing) → UNKNOWN → CREATED → DONE
                   │         └────→ OVER          its batch ended without rows, or was given up
                   ├─────────────→ REFUSED        nothing was created: the same may be sent again
                   └─────────────→ QUARANTINED    people decide: adopted, or given up
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, KeysView, Mapping


class Fate(Enum):
    """What became of the create of an intent."""

    UNKNOWN = "unknown"
    """It went out, or was about to, and nobody heard what came of it."""
    CREATED = "created"
    REFUSED = "refused"
    OVER = "over"
    QUARANTINED = "quarantined"
    DONE = "done"
    """The rows of its batch are in the ledger."""


OPEN: Final = frozenset({Fate.UNKNOWN, Fate.CREATED, Fate.QUARANTINED})
"""Something may have been paid of which the ledger has no rows."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One batch of one block, before and after it was created."""

    number: int
    """The block's."""
    first: int
    """0-based row number of the block's first row."""
    rows: int
    requests: int
    tokens: int
    """Estimated."""
    attempt: int
    """0 for the block's first batch; what is over or done is followed by another one."""
    fingerprint: str
    at: float
    """When it was written down, seconds since 1970."""
    fate: Fate = Fate.UNKNOWN
    batch: str = ""
    """Its name, once it is known."""
    file: str = ""
    """Its input file, as the provider names it; empty where it has none."""
    why: str = ""
    """Why it was refused, is over, or is in quarantine."""
    closed: float | None = None
    """When it was refused, over, quarantined or given up."""

    @property
    def shown(self) -> str:
        """The rows, for people."""
        return f"rows {self.first}-{self.first + self.rows - 1}"

    def line(self) -> dict[str, object]:
        """Return what is written down before the create goes out."""
        return {name: getattr(self, name) for name in _WRITTEN}


_WRITTEN: Final = tuple(one.name for one in fields(Intent))[:8]


@dataclass(slots=True)
class Intents:
    """All intents of one run, by their lines in its ledger."""

    _all: dict[str, Intent] = field(default_factory=dict)
    """By fingerprint, in the order in which they were written down."""
    _last: dict[int, str] = field(default_factory=dict)
    """Block to its last fingerprint."""

    def __iter__(self) -> Iterator[Intent]:
        return iter(self._all.values())

    def of(self, number: int) -> Intent | None:
        """Return the last intent of a block."""
        return self._all.get(self._last.get(number, ""))

    def blocks(self) -> dict[int, Intent]:
        """Return the last intent of each block that has one."""
        return {number: self._all[mark] for number, mark in self._last.items()}

    def open(self) -> list[Intent]:
        """Return those for which something may have been paid that is not in the ledger."""
        return [one for one in self if one.fate in OPEN]

    @property
    def marks(self) -> KeysView[str]:
        """The fingerprints of all of them."""
        return self._all.keys()

    def find(self, fingerprint: str) -> Intent:
        """Return the intent of a fingerprint. Raises KeyError."""
        return self._all[fingerprint]

    def intend(self, said: Mapping[str, Any]) -> None:
        """Take a line of a new intent, or of one that is sent again."""
        intent = Intent(**said)
        self._all[intent.fingerprint] = intent
        self._last[intent.number] = intent.fingerprint

    def created(self, said: Mapping[str, Any]) -> None:
        """Take a line about what came of a create."""
        intent = self._all[said["fingerprint"]]
        batch, why, at = said["batch"], said.get("why") or "", said["at"]
        if batch and not why:
            moved = replace(intent, fate=Fate.CREATED, batch=batch, file=said.get("file") or "", why=why)
        elif batch:
            moved = replace(intent, fate=Fate.OVER, batch=batch, why=why, closed=at)
        else:
            moved = replace(intent, fate=Fate.REFUSED, why=why, closed=at)
        self._all[intent.fingerprint] = moved

    def quarantine(self, said: Mapping[str, Any]) -> None:
        """Take a line that leaves an intent to people, or says that they gave it up."""
        intent = self._all[said["fingerprint"]]
        fate = Fate.OVER if said.get("abandoned") else Fate.QUARANTINED
        moved = replace(intent, fate=fate, why=said["why"], closed=said["at"])
        self._all[intent.fingerprint] = moved

    def done(self, number: int) -> None:
        """Take note that the rows of a block are in the ledger."""
        intent = self.of(number)
        if intent is not None:
            self._all[intent.fingerprint] = replace(intent, fate=Fate.DONE)


def as_json(intent: Intent) -> dict[str, object]:
    """Return all that is known of an intent, for programs."""
    return {**asdict(intent), "fate": intent.fate.value}
