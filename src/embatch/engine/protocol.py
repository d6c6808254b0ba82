"""What an engine is: texts in, float32 vectors out, in five methods. It knows no batch and no store.

An engine is synchronous. `encode` and `forward` may run at the same time in different threads, and
`forward` itself in as many threads as `Description.streams` says. The same rows forwarded in the same
planned shape give the same bytes, always: order of rows, their company and their number included. Where
`Description.invariant` is set they give them in every shape.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from embatch.engine.texts import DEFAULT_PROMPT
from embatch.errors import Code, EmbatchError, EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    TokenRow: TypeAlias = "NDArray[np.int32] | str"
    """Token ids of one text, shape (tokens,); an engine that hides its tokens keeps the text itself."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine to load for which model: all that an engine process is told at its start."""

    engine: str
    """`amx`, `openvino`, `torch`, `remote`, `hashing`, or `auto`: the fastest that can be."""
    model: str
    """A folder, a Hub name (`org/name`), or the name the remote endpoint knows."""
    precision: str = "auto"
    """`f32`, `bf16`, or `auto`: bf16 where the CPU or GPU multiplies it natively."""
    threads: int = 0
    """0 for one per core."""
    url: str | None = None
    """Base address of a remote endpoint, such as `http://127.0.0.1:8000/v1`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Engine-specific settings by name, such as the hashing engine's `delay`."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a loaded engine computes. Two engines with equal `identity` give interchangeable vectors."""

    engine: str
    model: str
    identity: str
    """Digest over weights, tokenizer, pooling, truncation and numerics."""
    dimensions: int
    """Native dimensions of every vector."""
    max_tokens: int
    """Longer texts are cut to this many tokens and flagged."""
    precision: str
    """`bf16` or `f32`."""
    streams: int
    """How many `forward` calls may run at the same time with profit."""
    normalized: bool
    """Whether vectors come with length 1."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Text put before a text, by task type (`TaskType` value). The empty name is the model's default prompt,
    for requests without a task type and for task types that are absent; without it they get none."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files that `identity` covers, by name; empty where there are none."""
    multiple: int = 1
    """Planned lengths are rounded up to a multiple of this, so that few shapes are ever compiled."""
    block: int = 0
    """Tokens of the blocks in which rows are laid end to end without padding; 0 where rows are padded."""
    invariant: bool = False
    """Whether a text's vector has the same bytes in every plan: alone, in any company, in any shape."""

    @property
    def elsewhere(self) -> bool:
        """Whether another machine computes: what ends the engine's process is then no text's doing."""
        return self.engine == "remote"


def replaced(one: Description, other: Description) -> bool:
    """Whether two engines of one model were loaded from a folder that was changed in between.

    Engines of other kinds or precisions may stand side by side: they have the same files.
    """
    both = one.files.keys() & other.files.keys()
    if any(one.files[name] != other.files[name] for name in both):
        return True
    if (one.max_tokens, one.prompts) != (other.max_tokens, other.prompts):
        return True
    same = (one.engine, one.precision) == (other.engine, other.precision)
    return same and one.identity != other.identity


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as tokens, row i of each for text i."""

    rows: Sequence[TokenRow]
    lengths: NDArray[np.int32]
    """Tokens of each text after truncation, special tokens included; an estimate where they are hidden."""
    truncated: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shape:
    """The planned shape of a micro-batch: fewer or shorter rows are padded up to it."""

    rows: int
    tokens: int


class RowsRefused(EmbatchError):
    """The engine refused these rows: one of them is at fault, and the pool finds out which."""

    code = Code.INVALID_ARGUMENT


class EndpointTrouble(EngineTrouble):
    """The endpoint as a whole, or the way to it, is in trouble: no text is ever to blame, however often."""


class OthersTaken(EndpointTrouble):
    """The endpoint takes other texts meanwhile: only whoever asks for these has to wait."""


class ModelChanged(EndpointTrouble):
    """What answers is not what was loaded: the engine has to be loaded anew to learn what it is."""


class Engine(Protocol):
    """The protocol. See `engine/conformance` in the tests for what every engine must pass."""

    def describe(self) -> Description:
        """Return what is loaded."""
        ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the tokens of each text, prompts already in place. No padding; an empty list is fine."""
        ...

    def forward(self, rows: Sequence[TokenRow], shape: Shape) -> NDArray[np.float32]:
        """Return the vectors of at most `shape.rows` rows: float32 (len(rows), dimensions), in their order.

        Raises:
            EngineTrouble: the engine cannot work now; the rows are not to blame, unless they alone meet it
                again and again. `EndpointTrouble` is nobody's doing for certain.
            RowsRefused: one of the rows is to blame.
        """
        ...

    def warm(self) -> None:
        """Do once what the first `forward` would pay for, such as compiling kernels."""
        ...

    def close(self) -> None:
        """Give back memory and connections. Repeating is safe."""
        ...


def computed_by(about: Description) -> str:
    """Return a digest of all that decides what a request's vector is: the engine, its prompts, its limit.

    An engine's own `identity` says nothing of prompts, and that of a remote one nothing of the limit.
    """
    prompts = about.prompts
    if not prompts.get(DEFAULT_PROMPT):  # an empty one then stands where none would
        prompts = {name: text for name, text in prompts.items() if text}
    said = (about.identity, about.max_tokens, sorted(prompts.items()))
    return hashlib.sha256(repr(said).encode()).hexdigest()
