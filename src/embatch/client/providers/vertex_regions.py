"""Which locations serve which model's batches: a dated table, which a file of the user's can replace."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "EMBATCH_REGIONS"
"""Variable of the file: `{"date": "2027-01", "gemini-embedding-001": ["us-central1"]}`."""
_REGIONAL: Final = ("*-*",)


@dataclass(frozen=True, slots=True)
class Regions:
    """Models by their names, each with the locations that serve its batches; `date`: when that was true."""

    date: str
    served: Mapping[str, tuple[str, ...]]
    """A location may have `*` for any characters."""

    def note(self, model: str, location: str) -> str | None:
        """Return what to say of a model in a location; `None` where it is known to be served there."""
        known = self.served.get(model)
        if known is None:
            return f"whether {location} serves batches of {model} is not known (table of {self.date})"
        if any(fnmatchcase(location, one) for one in known):
            return None
        places = ", ".join(known) if known != _REGIONAL else "single regions"
        return (
            f"batches of {model} are known to be served in {places} (table of {self.date}), not in {location}"
        )


DEFAULT: Final = Regions(
    "2026-06",
    {
        "gemini-embedding-001": (
            *("us-central1", "us-east1", "us-east4", "us-west1", "us-west4"),
            *("europe-west1", "europe-west4"),
        ),
        "gemini-embedding-2": ("global", "us", "eu"),
        "text-embedding-005": _REGIONAL,
        "text-embedding-004": _REGIONAL,
        "text-multilingual-embedding-002": _REGIONAL,
    },
)
"""From Vertex's own pages; what it does not know is a note, and the service's refusal decides."""


def load(path: str | None) -> Regions:
    """Return the table, with what a JSON object in a file says in place of the same models.

    Raises:
        InvalidArgument: the file cannot be read, or is no such object.
    """
    if path is None:
        return DEFAULT
    try:
        said = orjson.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{VARIABLE}: {path} cannot be read: {error}", field=VARIABLE) from None
    if not isinstance(said, dict) or not isinstance(date := said.pop("date", None), str):
        raise InvalidArgument(
            f"{VARIABLE}: {path}: a JSON object with a date, and a list of locations a model, is wanted",
            field=VARIABLE,
        )
    for model, places in said.items():
        if not isinstance(places, list) or not all(isinstance(one, str) for one in places):
            raise InvalidArgument(f"{VARIABLE}: {path}: {model} must be a list of locations", field=VARIABLE)
    return Regions(date, {**DEFAULT.served, **{model: tuple(places) for model, places in said.items()}})
