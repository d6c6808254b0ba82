"""What an OpenAI-style endpoint answers: one vector a text, each put where its index says, or why not.

No word of an answer enters a message: messages reach logs.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBER_BYTES: Final = 64
"""No number is written longer, with what stands around it on a line of its own."""
_DIMENSIONS: Final = 8192
"""What an answer may grow to when the model behind an endpoint is changed for a larger one."""
_SLACK: Final = 1 << 20
_NAME: Final = 512
"""Characters of the longest name of a model that is believed."""


class WrongAnswer(Exception):
    """An answer that cannot be right; the message says how, without a word of it."""


class OtherModel(WrongAnswer):
    """A sound answer of another model than was asked before: other dimensions, or another name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer has to be like. `None` takes what comes."""

    dimensions: int | None = None
    """How many numbers a vector has."""
    name: str | None = None
    """What the endpoint calls its model."""

    def most_bytes(self, count: int) -> int:
        """Return the bytes above which no answer to this many texts is read."""
        return _SLACK + count * max(self.dimensions or 0, _DIMENSIONS) * _NUMBER_BYTES


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """A sound one."""

    vectors: NDArray[np.float32]
    """(texts, dimensions), in the order of the texts; numbers may be NaN or infinite."""
    name: str | None
    """What the endpoint calls its model; `None` where it does not say."""


def read(body: bytes, count: int, expected: Expected) -> EndpointAnswer:
    """Return the vectors of `count` texts.

    Raises:
        OtherModel: they are another model's than was expected.
        WrongAnswer: this is no answer with one vector a text.
    """
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswer("not JSON") from None
    data = said.get("data") if isinstance(said, dict) else None
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise WrongAnswer("without a list of embeddings")
    places = [one.get("index") for one in data]
    # By type and not by isinstance: True is an int.
    if any(type(place) is not int for place in places) or sorted(places) != list(range(count)):
        raise WrongAnswer(f"with {len(data)} embeddings for {count} texts, or with wrong indices")
    found = [_vector(one.get("embedding")) for one in data]
    sizes = {len(vector) for vector in found}
    size = max(sizes)
    if len(sizes) > 1 or not size:
        raise WrongAnswer(f"with {min(sizes)} to {size} dimensions")
    if expected.dimensions not in (None, size):
        raise OtherModel(f"with {size} dimensions instead of {expected.dimensions}")
    name = said.get("model")
    name = name if isinstance(name, str) and 0 < len(name) <= _NAME else None
    if None not in (name, expected.name) and name != expected.name:
        raise OtherModel("in the name of another model than before")
    vectors = np.empty((count, size), np.float32)
    vectors[places] = found
    return EndpointAnswer(vectors, name)


def _vector(said: object) -> NDArray[np.float32]:
    if isinstance(said, str):
        try:
            return np.frombuffer(base64.b64decode(said, validate=True), "<f4").astype(np.float32)
        except (binascii.Error, ValueError):  # not base64, or not whole numbers of four bytes
            raise WrongAnswer("with an embedding that is not base64 of float32") from None
    if not isinstance(said, list) or not all(type(number) in (float, int, type(None)) for number in said):
        raise WrongAnswer("with an embedding that is no list of numbers")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which no one accepts
        return np.array([np.nan if number is None else number for number in said], np.float64).astype(
            np.float32
        )
