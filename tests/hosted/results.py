"""From the rows of a batch to its results, and what goes wrong between them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hosted.vectors import EMBEDDERS, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from hosted.behaviour import Behaviour
    from hosted.vectors import Vectors
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """A request of a batch."""

    echo: dict[str, Any]
    """What the line of its result repeats."""
    text: str = ""
    dimensions: int | None = None
    task: str = ""
    title: str = ""
    problem: str = ""
    """Why it cannot be embedded at all."""


@dataclass(frozen=True, slots=True)
class Result:
    """What becomes of a row."""

    row: Row
    values: NDArray[np.float32] | None
    tokens: int = 0
    code: int = 0
    message: str = ""


@dataclass
class Damage:
    """What was done to the results of one batch, by the places of its rows."""

    sources: dict[int, int] = field(default_factory=dict)
    """Rows that have the vector of another row."""
    foreign: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    doubled_differently: dict[int, int] = field(default_factory=dict)
    order: list[int] | None = None

    @property
    def misplaced(self) -> list[int]:
        """Rows whose vector is not their text's."""
        return sorted({*self.sources, *self.foreign})


def refuse(row: Row, behaviour: Behaviour) -> Row:
    """Return the row with the reason for which it fails, if it does."""
    if row.problem:
        return row
    if not row.text.strip():
        return replace(row, problem="content is empty")
    if behaviour.refused_word and behaviour.refused_word in row.text:
        return replace(row, problem="content was refused")
    return row


def damage(rows: Sequence[Row], behaviour: Behaviour, ordinal: int) -> Damage:
    """Choose by seed what is damaged; no row is damaged twice."""
    made, chosen = Damage(), random.Random(f"{behaviour.seed}:{ordinal}")
    good = [at for at, row in enumerate(rows) if not row.problem]
    if not behaviour.damages(ordinal):
        return made
    taken: set[int] = set()
    for length, turned in (
        (behaviour.shift, lambda run: run[1:] + run[:1]),
        (behaviour.reverse, lambda run: run[::-1]),
        (behaviour.shuffle, lambda run: chosen.sample(run, len(run))),
    ):
        free = [at for at in good if at not in taken]
        if length and free:
            first = chosen.randrange(max(1, len(free) - length + 1))
            run = free[first : first + length]
            taken.update(run)
            made.sources.update(zip(run, turned(run), strict=True))
    pool = [at for at in good if at not in taken]
    chosen.shuffle(pool)

    def take(count: int) -> list[int]:
        return [pool.pop() for _ in range(min(count, len(pool)))]

    for _ in range(behaviour.swap_pairs):
        if len(pair := take(2)) == 2:
            made.sources.update({pair[0]: pair[1], pair[1]: pair[0]})
    if alike := take(behaviour.same_vector):
        made.sources.update(dict.fromkeys(alike[1:], alike[0]))
    made.foreign = take(behaviour.foreign)
    made.dropped = take(behaviour.drop)
    made.doubled = take(behaviour.double)
    for at in take(behaviour.double_differently):
        made.doubled_differently[at] = chosen.choice([other for other in good if other != at] or [at])
    if behaviour.reorder:
        made.order = chosen.sample(range(len(rows)), len(rows))
    return made


@dataclass(frozen=True)
class Embedding:
    """What a batch is computed with."""

    vectors: Vectors
    model: str
    behaviour: Behaviour
    done: float = 1.0
    """Share of the rows that are served, the first ones."""

    def results(self, rows: Sequence[Row], hurt: Damage) -> Iterator[Result]:
        """Yield the results in the order in which they go out; rows that are not served have code 1."""
        dropped, doubled, foreign = set(hurt.dropped), set(hurt.doubled), set(hurt.foreign)
        for at in hurt.order if hurt.order is not None else range(len(rows)):
            if at in dropped:
                continue
            yield self._result(rows, at, hurt, foreign)
            if at in doubled:
                yield self._result(rows, at, hurt, foreign)
            if at in hurt.doubled_differently:
                yield self._computed(rows[at], rows[hurt.doubled_differently[at]].text)

    def _result(self, rows: Sequence[Row], at: int, hurt: Damage, foreign: set[int]) -> Result:
        row = rows[at]
        if at >= self.done * len(rows):
            return Result(row, None, 0, 1, "Batch was cancelled.")
        if row.problem:
            return Result(row, None, 0, 3, row.problem)
        if at in foreign:
            return self._computed(row, f"a text that nobody sent, {at}")
        return self._computed(row, rows[hurt.sources.get(at, at)].text)

    def _computed(self, row: Row, text: str) -> Result:
        sent = row if text == row.text else replace(row, text=text)
        values = embedded(self.vectors, self.model, sent, self.behaviour)
        return Result(row, values, min(len(tokens(text)), EMBEDDERS[self.model].tokens))


def embedded(vectors: Vectors, model: str, row: Row, behaviour: Behaviour) -> NDArray[np.float32]:
    """Return the vector of a row."""
    width = None if behaviour.ignore_dimensions else row.dimensions
    return vectors(row.text, model, width, row.task, row.title)
