"""How a block becomes a batch where a submit has no idempotency key and every batch costs money.

The intent of a create is durable before the create goes out. After any doubt the provider's batches are
listed, and ours is known by its fingerprint: in the name of its input file, in its display name, or in a
label. What no list holds is created again only as `unknown_fate` allows, and left to people where that allows
nothing.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from embatch.batch import Batch
from embatch.client.fingerprint import NAME, fingerprint, in_name
from embatch.client.flows import BatchOptions
from embatch.client.for_runs import ForRuns
from embatch.client.unknown_fate import OLD, TOO_OLD, Next, UnknownCreate, undecided
from embatch.errors import EmbatchError, NotFound, PermissionDenied, Unauthenticated
from embatch.runs.handover import STOPPED, Handover, rows_shown
from embatch.runs.identity import same_key
from embatch.runs.in_flight import tokens_of
from embatch.runs.intents import Fate, Intent
from embatch.runs.steps import Step
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from embatch.runs.clock import Clock
    from embatch.runs.sources import Rows

_FIRST_LOOK: Final = 5.0
_LAST_LOOK: Final = 300.0
"""Seconds between two lists: the first ones come soon, for a list is usually late by some seconds."""


@dataclass(slots=True)
class Doubt:
    """A create of unknown fate, while this call looks for it."""

    intent: Intent
    known: UnknownCreate
    looks: int = 0


@dataclass(slots=True)
class PayOnce(Handover):
    """Creates each batch once."""

    clock: Clock
    reached: Callable[[Step], object]
    notes: list[str] = field(default_factory=list, kw_only=True)
    """What people should know in the end."""
    _doubts: dict[int, Doubt] = field(default_factory=dict, kw_only=True)
    _due: float = field(default=math.inf, kw_only=True)

    def batch(self, number: int, rows: Rows, texts: Sequence[str]) -> Batch | Fate:
        """Create a batch of a block, or return what became of the one that was created or might have been.

        Raises:
            EmbatchError: nothing was created: the provider refused it, or its input did not get there.
        """
        while True:
            intent = self.ledger.intents.of(number)
            if intent is None or intent.fate in (Fate.REFUSED, Fate.OVER, Fate.DONE):
                return self._create(self._intent(intent, number, rows, texts), rows, texts)
            if intent.fate is Fate.QUARANTINED:
                return Fate.QUARANTINED
            if intent.fate is Fate.UNKNOWN:
                self._begin_doubt(intent)
                return Fate.UNKNOWN
            batch = self._found_again(intent)
            if batch is None:
                continue
            if batch.state not in STOPPED:
                self.handed[batch.name] = None
                return batch
            self.over(number, batch)

    def _intent(self, earlier: Intent | None, number: int, rows: Rows, texts: Sequence[str]) -> Intent:
        """Return what is to be created of a block; what was refused is the same once more."""
        attempt = 0 if earlier is None else earlier.attempt + (earlier.fate is not Fate.REFUSED)
        mark = fingerprint(
            self.ledger.about,
            self.ledger.begun.get("token"),
            number,
            attempt,
            self.embed_options.priority,
            texts,
        )
        tokens = tokens_of(texts)
        return Intent(number, rows.first, len(rows.texts), len(texts), tokens, attempt, mark, 0.0)

    def _create(self, intent: Intent, rows: Rows, texts: Sequence[str]) -> Batch | Fate:
        intended = False

        def intend() -> None:
            nonlocal intended, intent
            self.reached(Step.UPLOADED)
            intent = replace(intent, at=self.clock.now())
            self.ledger.intend(intent)
            intended = True
            self.reached(Step.INTENDED)

        options = BatchOptions(
            f"{self.display_name} {rows_shown(rows)}"[-NAME:],
            self.embed_options.priority,
            fingerprint=intent.fingerprint,
        )
        self.reached(Step.HANDING_OVER)
        try:
            batch = ForRuns(self.client).submit(texts, self.defaults(), options, intend)
        except EmbatchError as error:
            if not intended:
                raise
            if not undecided(error):
                self.ledger.created(intent.fingerprint, self.clock.now(), None, error.code.name)
                raise
            self._begin_doubt(intent)
            return Fate.UNKNOWN
        self.reached(Step.CREATED)
        self._know(intent, batch)
        self.reached(Step.KNOWN)
        self.handed[batch.name] = None
        return batch

    def _know(self, intent: Intent, batch: Batch) -> None:
        self.ledger.created(intent.fingerprint, self.clock.now(), batch)

    def _found_again(self, intent: Intent) -> Batch | None:
        """Return the batch of an earlier call as it is now; one that is not there is left to people."""
        try:
            return ForRuns(self.client).look(intent.batch)
        except (NotFound, PermissionDenied) as error:
            why = f"{intent.batch} is not there any more, or not for this key ({error.code.name})"
            self.ledger.quarantine(intent.fingerprint, self.clock.now(), why)
            return None

    def over(self, number: int, batch: Batch) -> None:
        """Take note that a batch ended without rows."""
        intent = self.ledger.intents.of(number)
        if intent is not None and intent.batch == batch.name:
            why = f"{batch.state}: {batch.error}" if batch.error else batch.state.value
            self.ledger.created(intent.fingerprint, self.clock.now(), batch, why)
        self.drop(batch)

    def drop(self, batch: Batch) -> None:
        """Have the provider forget what a batch was made of, and then the batch; its rows are in the ledger.

        What cannot be deleted costs nothing and goes by itself: no run fails of it.
        """
        self.handed.pop(batch.name, None)
        # No run deletes another one's input: its name holds the mark of an intent of ours.
        if {batch.fingerprint, in_name(batch.input_file)} & self.ledger.intents.marks:
            with suppress(EmbatchError):
                ForRuns(self.client).clean_up(batch)
        self.reached(Step.INPUT_DROPPED)
        with suppress(EmbatchError):
            self.client.delete_batch(batch.name)
        self.reached(Step.BATCH_DROPPED)

    def drop_last(self) -> None:
        """Drop the batch whose rows were committed just before an earlier call was stopped."""
        last = self.ledger.last
        intent = None if last is None else self.ledger.intents.of(last.number)
        if intent is not None and intent.fate is Fate.DONE:
            known = Batch(intent.batch, "", State.COMPLETED, None, 0, None, None, None)
            self.drop(replace(known, input_file=intent.file or None, fingerprint=intent.fingerprint))

    # what is in doubt

    def _begin_doubt(self, intent: Intent) -> None:
        """Have a batch looked for at once; what is from the future is from a clock that is wrong."""
        since = min(intent.at, self.clock.now())
        self._doubts.setdefault(intent.number, Doubt(intent, UnknownCreate(since)))
        self._due = self.clock.monotonic()

    @property
    def due(self) -> float:
        """When the batches are listed next."""
        return self._due if self._doubts else math.inf

    def look(self) -> list[int]:
        """List the batches once for all that is in doubt; return the blocks that are settled.

        Raises:
            EmbatchError: the provider lists nothing for this key.
        """
        begun = self.clock.now()
        try:
            found = self._listed({doubt.intent.fingerprint for doubt in self._doubts.values()})
        except (Unauthenticated, PermissionDenied):
            raise
        except EmbatchError:
            found = None
        self.reached(Step.LISTED)
        settled = [doubt for doubt in self._doubts.values() if self._settle(doubt, begun, found)]
        for doubt in settled:
            del self._doubts[doubt.intent.number]
        self.reached(Step.SETTLED)
        looks = min((doubt.looks for doubt in self._doubts.values()), default=0)
        wait = min(_LAST_LOOK, _FIRST_LOOK * 2.0 ** min(looks - 1, 64))
        dues = [doubt.known.due - begun for doubt in self._doubts.values()]
        soon = min((due for due in dues if due > 0), default=wait)
        self._due = self.clock.monotonic() + min(wait, soon)
        return [doubt.intent.number for doubt in settled]

    def _settle(self, doubt: Doubt, begun: float, found: dict[str, list[Batch]] | None) -> bool:
        """Write down what is known of a create after a list; return whether that is enough."""
        intent, now = doubt.intent, self.clock.now()
        doubt.looks += 1
        if found is not None:
            if batches := found.get(intent.fingerprint):
                self._know(intent, _ours(batches))
                self._note_others(intent, batches)
                return True
            doubt.known = doubt.known.missed(begun)
            if not same_key(self.client, self.ledger.begun):
                why = "the key is another one than the run began with: its lists may be another account's"
                self.ledger.quarantine(intent.fingerprint, now, why)
                return True
        match doubt.known.next(now):
            case Next.REPEAT:
                self.ledger.created(intent.fingerprint, now, None, "in no list of batches")
                return True
            case Next.QUARANTINE:
                why = f"nobody knows whether it was created, {TOO_OLD / 3600:.0f} hours after it was to be"
                self.ledger.quarantine(intent.fingerprint, now, why)
                return True
        return False

    def _listed(self, wanted: Iterable[str]) -> dict[str, list[Batch]]:
        """Return the batches that bear one of these fingerprints, from a whole list of all batches."""
        found: dict[str, list[Batch]] = {mark: [] for mark in wanted}
        for batch in self.client.list_batches():
            for mark in {batch.fingerprint, in_name(batch.input_file)} & found.keys():
                found[str(mark)].append(batch)
        return found

    def _note_others(self, intent: Intent, batches: Sequence[Batch]) -> None:
        if others := [batch.name for batch in batches if batch is not _ours(batches)]:
            self.notes.append(
                f"{intent.shown} were created more than once: {', '.join(others)} may have been paid too, "
                "and nobody reads it"
            )

    def doubt(self) -> Batch | None:
        """Return a batch of unknown fate, with what is done about it in its notes."""
        if not self._doubts:
            return None
        doubt = min(self._doubts.values(), key=lambda one: one.intent.at)
        due = datetime.fromtimestamp(max(doubt.known.since + OLD, doubt.known.due), UTC)
        note = (
            f"it is not known whether a batch of {doubt.intent.shown} was created: it is looked for in the "
            f"lists of batches, and created again after {due:%H:%M:%S} UTC at the earliest"
        )
        model = str(self.embed_options.model or "")
        return Batch("", model, State.PENDING, self.display_name, 0, None, None, None, notes=(note,))


def _ours(batches: Sequence[Batch]) -> Batch:
    """Return the one that is read of batches with one fingerprint: the oldest that was not stopped."""
    return next((batch for batch in reversed(batches) if batch.state not in STOPPED), batches[-1])
