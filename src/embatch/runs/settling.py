"""What people decide of a batch that a run may have paid for: it is this one, or it is given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.client.base import target_of
from embatch.client.fingerprint import in_name
from embatch.errors import FailedPrecondition, InvalidArgument, NotFound
from embatch.runs.identity import place_of
from embatch.runs.intents import OPEN, Fate
from embatch.runs.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.runs.intents import Intent

IN_DOUBT: Final = frozenset({Fate.UNKNOWN, Fate.QUARANTINED})


def take_up(folder: Path, place: str) -> Ledger:
    """Take up the ledger of an output to settle something in it; close it.

    Raises:
        NotFound: there is none.
        FailedPrecondition: a run is at work on it.
    """
    try:
        return Ledger.take_up(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{place} has no ledger ({folder}): its run is over, or never began", field="OUT"
        ) from None


def check_target(client: Client, ledger: Ledger) -> None:
    """Refuse a client that goes elsewhere than the run. Raises FailedPrecondition."""
    here = place_of(target_of(client))
    then = {name: ledger.about.get(name) for name in here}
    if here != then:
        raise FailedPrecondition(
            f"the run's batches are with {_words(then)}, and this goes to {_words(here)}: set what the run "
            "had (address, project and location come from the environment)",
            field="OUT",
        )


def _words(place: dict[str, object]) -> str:
    return ", ".join(str(value) for value in place.values() if value is not None) or "nobody"


def to_adopt(ledger: Ledger, batch: Batch, number: int | None) -> Intent:
    """Return the intent that a batch is of.

    Args:
        ledger: of the run.
        batch: as the provider has it.
        number: of the block whose batch it is, where it bears no mark that says so.

    Raises:
        InvalidArgument: it is no batch of this run's, or of other rows.
        FailedPrecondition: nothing is in doubt about these rows.
    """
    mark = batch.fingerprint or in_name(batch.input_file)
    marked = [intent for intent in ledger.intents if intent.fingerprint == mark]
    if mark is not None and not marked:
        raise InvalidArgument(
            f"{batch.name} bears the mark of another run or submit: its embeddings belong to other texts",
            field="NAME",
        )
    if not marked and number is None:
        raise InvalidArgument(
            f"{batch.name} bears no mark that says which rows it is of: name their block with --block, if "
            "you are sure (`embatch runs OUT` numbers them)",
            field="NAME",
        )
    intent = marked[0] if marked else ledger.intents.of(number or 0)
    if intent is None or (number is not None and intent.number != number):
        raise InvalidArgument(f"{batch.name} is not of block {number}", field="--block")
    if intent.fate not in IN_DOUBT:
        said = f"{intent.fate.value}: {intent.batch}" if intent.batch else intent.fate.value
        raise FailedPrecondition(f"nothing is in doubt about {intent.shown} ({said})", field="NAME")
    count = batch.batch_stats.request_count
    if count not in (0, intent.requests):
        raise InvalidArgument(
            f"{batch.name} has {count:,} requests, and {intent.shown} were {intent.requests:,}: another one",
            field="NAME",
        )
    return intent


def to_abandon(ledger: Ledger, name: str | None, fates: frozenset[Fate]) -> list[Intent]:
    """Return what is to be given up: by the name of its batch or its mark, else all of these fates.

    Raises:
        NotFound: there is nothing.
    """
    found = [intent for intent in ledger.intents if intent.fate in OPEN]
    if name is not None:
        chosen = [intent for intent in found if name in (intent.batch, intent.fingerprint)]
    else:
        chosen = [intent for intent in found if intent.fate in fates]
    if not chosen:
        others = "; ".join(
            f"{one.shown}: {one.fate.value} {one.batch or one.fingerprint}" for one in found[:5]
        )
        raise NotFound(
            f"there is nothing to give up{f' under {name}' if name else ''}"
            + (f", but there is {others}: name it, or give --unknown or --in-flight" if others else ""),
            field="NAME",
        )
    return chosen
