"""What a check found, as it is kept: of a block in the ledger, of a run in the metadata of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embatch.runs.alignment.comparison import Outcome
from embatch.runs.alignment.thresholds import CANDIDATE_Z

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from embatch.runs.alignment.check import Checked

VERSION: Final = 1
_WORST_FIRST: Final = (
    Outcome.DAMAGED,
    Outcome.IN_DOUBT,
    Outcome.NOT_COMPARABLE,
    Outcome.SOUND,
    Outcome.NOT_CHECKED,
)
NOT_FOUND: Final = (
    "texts edited since, exchanges of texts that say nearly the same, and whatever changes all vectors alike "
    "cannot be found"
)


def of_block(checked: Checked, rows: Sequence[int], tokens: int) -> dict[str, Any]:
    """Return what was found of one block, as JSON.

    Args:
        checked: of the block.
        rows: number in the whole input of each row that was checked.
        tokens: of the texts that were embedded again.
    """
    survey, comparison = checked.survey, checked.comparison
    found: dict[str, Any] = {
        "v": VERSION,
        "verdict": checked.outcome.value,
        "rows": checked.rows,
        "failed": len(checked.faults),
        "calls": len(comparison.compared),
        "tokens": tokens,
        "cpu_seconds": round(checked.cpu_seconds, 3),
        "equal_from": comparison.equal_from,
        "again": [
            {
                "row": rows[one.row],
                "why": one.why.value,
                "cosine": one.cosine,
                "equal": one.equal,
                **({} if one.equal else {"nearest": rows[one.nearest], "nearest_cosine": one.nearest_cosine}),
            }
            for one in comparison.compared
        ],
    }
    if survey is not None:
        found["survey"] = {
            "features": checked.features,
            "earlier": survey.earlier,
            "median_z": round(survey.median, 2),
            "guard_z": round(survey.guard, 2),
            "stand_out": round(float(np.mean(survey.z >= CANDIDATE_Z)), 4),
            "alarms": list(survey.alarms),
        }
    return found


def calls(record: Mapping[str, Any] | None) -> int:
    """Return how many texts of a block were embedded again."""
    return 0 if record is None else int(record["calls"])


def damaged(record: Mapping[str, Any] | None) -> bool:
    """Return whether vectors of a block were found at wrong texts."""
    return record is not None and record["verdict"] == Outcome.DAMAGED.value


def of_run(records: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return what was found of all blocks, as JSON; `None` where no check was made.

    What it took to find it is left out: an output is the same however often its run was stopped.
    """
    found = [record for record in records if record is not None]
    if not found:
        return None
    outcomes = {record["verdict"] for record in found}
    surveys = [(record["rows"], record["survey"]) for record in found if "survey" in record]
    compared = sum(map(calls, found))
    return {
        "v": VERSION,
        "verdict": next(one.value for one in _WORST_FIRST if one.value in outcomes),
        "power": _power(surveys, sum(record["rows"] for record in found), compared),
        "not_found": NOT_FOUND,
        "rows": sum(record["rows"] for record in found),
        "surveyed_rows": sum(rows for rows, _ in surveys),
        "failed": sum(record["failed"] for record in found),
        "calls": compared,
        "features": sorted({survey["features"] for _, survey in surveys}),
        "alarms": sorted({alarm for _, survey in surveys for alarm in survey["alarms"]}),
        "again": [one for record in found for one in record["again"]],
    }


def _power(surveys: Sequence[tuple[int, Mapping[str, Any]]], rows: int, compared: int) -> str:
    """Return in plain words what the check could have seen."""
    if not compared and not surveys:
        return "nothing was compared"
    if not surveys:
        return (
            f"random rows alone: if 1 % of all vectors were wrong, {compared:,} rows would all be right in "
            f"{0.99**compared:.0%} of cases"
        )
    surveyed = sum(count for count, _ in surveys)
    seen = sum(count * survey["stand_out"] for count, survey in surveys) / max(1, surveyed)
    part = "" if surveyed == rows else f" of the {surveyed:,} that were surveyed"
    return (
        f"{seen:.1%} of the rows{part} fit their own texts so well that another text's vector would have "
        "stood out there"
    )
