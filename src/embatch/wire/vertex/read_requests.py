"""The lines that were staged for a job, read back: what the older models' results are matched with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embatch import jsontext
from embatch.errors import DataLoss
from embatch.wire.vertex.write_requests import INSTANCE, KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPTIONS: Final = ("task_type", "title", "outputDimensionality")


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """A request as it was staged for one of the older models."""

    key: str
    instance: Mapping[str, Any]


def parse_kept(line: bytes) -> KeptRequest:
    """Return the request of a line. Raises `DataLoss` where it is not what was written."""
    try:
        said = jsontext.loads(line)
    except ValueError:
        said = None
    if isinstance(said, dict) and isinstance(said.get(KEY), str) and isinstance(said.get(INSTANCE), dict):
        return KeptRequest(said[KEY], said[INSTANCE])
    raise DataLoss("the staged requests of the batch are damaged: its results cannot be matched")


def content_of(instance: Mapping[str, Any]) -> str | None:
    """Return the text of an instance."""
    content = instance.get("content")
    return content if isinstance(content, str) else None


def options_of(instance: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return what an instance says beside its text, however it spells it; `None` for what it leaves out."""
    said = {_plain(name): value for name, value in instance.items()}
    return tuple(None if said.get(_plain(name)) is None else str(said[_plain(name)]) for name in _OPTIONS)


def _plain(name: str) -> str:
    return re.sub("_", "", name).lower()
