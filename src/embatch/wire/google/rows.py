"""The outcome of one request, however a protocol says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.errors import RequestError
    from embatch.vectors import Vectors


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """The outcome of one request, as a list or file of results has it: exactly one of values and error."""

    key: str | None
    metadata: Mapping[str, Any] | None
    values: Vectors | None = field(repr=False)
    error: RequestError | None
    tokens: int | None
    """`None` where the service does not say."""
    truncated: bool = False
    """Whether the text was cut; where the service does not say, it is not known to be."""
