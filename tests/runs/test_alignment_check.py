"""A block's check as a whole, every kind of damage, and what is kept of verified rows for later ones."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from alignment_rows import Rows, rows

from embatch.runs.alignment.check import BROKEN, DOUBTED, MISPLACED, Check
from embatch.runs.alignment.comparison import Outcome
from embatch.runs.alignment.earlier import MOST, EarlierFile, about
from embatch.runs.alignment.features import Features
from embatch.runs.alignment.sampling import Verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

NGRAMS = Features(None)


@dataclass
class Service:
    """Embeds texts again, as it always does; it remembers how many."""

    truth: Rows
    asked: list[str] = field(default_factory=list)

    def __call__(self, texts: list[str]) -> list[NDArray[np.float32] | None]:
        """As `Check.again`."""
        self.asked += texts
        of = dict(zip(self.truth.texts, self.truth.vectors, strict=True))
        return [of[text] for text in texts]


@pytest.fixture(scope="module")
def honest() -> Rows:
    """As many rows as a batch needs to judge itself."""
    return rows(1_200, seed=2)


def _file(folder: Path, model: str = "m") -> EarlierFile:
    return EarlierFile(folder / "data", about("p", model, None, 64, NGRAMS.name))


def _check(folder: Path, service: Service, verify: Verify = Verify.FULL) -> Check:
    return Check(verify, NGRAMS, _file(folder), service)


def _one_percent(count: int) -> NDArray[np.intp]:
    order, chosen = np.arange(count), np.random.default_rng(1).permutation(count)[:12]
    order[chosen] = order[np.roll(chosen, 1)]
    return order


def _shift(count: int) -> NDArray[np.intp]:
    order = np.arange(count)
    order[600:640] = np.roll(order[600:640], 1)
    return order


def _reversal(count: int) -> NDArray[np.intp]:
    order = np.arange(count)
    order[100:120] = order[100:120][::-1]
    return order


def _shuffle(count: int) -> NDArray[np.intp]:
    return np.random.default_rng(2).permutation(count)


def _pair(count: int) -> NDArray[np.intp]:
    order = np.arange(count)
    order[[17, 940]] = 940, 17
    return order


def _repeat(count: int) -> NDArray[np.intp]:
    order = np.arange(count)
    order[[5, 105, 205, 305]] = 5
    return order


def test_honest_rows_are_sound(tmp_path: Path, honest: Rows) -> None:
    """Twelve of twelve hundred are embedded again, and nothing has to be done twice."""
    service = Service(honest)
    found = _check(tmp_path, service).block(honest.texts, honest.vectors, 12)
    assert found.outcome is Outcome.SOUND
    assert found.faults == {}
    assert len(service.asked) == len(set(service.asked)) == len(found.comparison.compared) == 12
    assert found.survey is not None
    assert found.features == "ngrams-1"


@pytest.mark.parametrize("damage", [_pair, _one_percent, _shift, _reversal, _shuffle, _repeat])
def test_damage_is_proved_by_a_few_calls_and_leaves_no_misplaced_row(
    tmp_path: Path, honest: Rows, damage: Callable[[int], NDArray[np.intp]]
) -> None:
    """Whatever was moved is among the rows that have to be embedded again, and so little else."""
    order = damage(len(honest))
    moved = set(np.flatnonzero(order != np.arange(len(honest))).tolist())
    given = honest.moved(order)
    found = _check(tmp_path, Service(honest)).block(given.texts, given.vectors, 12)
    assert found.outcome is Outcome.DAMAGED
    assert len(moved - set(found.faults)) <= 0.03 * len(moved)
    assert MISPLACED in found.faults.values()
    assert {row for row, why in found.faults.items() if why == MISPLACED} <= moved
    assert set(found.faults.values()) <= {MISPLACED, DOUBTED}
    if len(moved) < 100:
        assert len(found.faults) < 0.5 * len(honest)
    assert _file(tmp_path).read() is None


def test_a_vector_without_direction_is_embedded_again(tmp_path: Path, honest: Rows) -> None:
    """Zeros and what is no number belong to no text; the other rows keep their numbers."""
    broken = honest.vectors.copy()
    broken[3], broken[9, 0] = 0.0, np.nan
    found = _check(tmp_path, Service(honest)).block(honest.texts, broken, 12)
    assert found.faults == {3: BROKEN, 9: BROKEN}
    assert found.outcome is Outcome.DAMAGED
    assert all(one.row == one.nearest for one in found.comparison.compared)


@pytest.mark.parametrize("verify", [Verify.SAMPLE, Verify.NONE])
def test_less_can_be_wanted(tmp_path: Path, honest: Rows, verify: Verify) -> None:
    """A sample is random rows and no survey; nothing at all is not sound."""
    service = Service(honest)
    calls = 20 if verify is Verify.SAMPLE else 0
    found = _check(tmp_path, service, verify).block(honest.texts, honest.vectors, calls)
    assert found.survey is None
    assert len(service.asked) == calls
    assert found.outcome is (Outcome.SOUND if calls else Outcome.NOT_CHECKED)
    assert _file(tmp_path).read() is None


def test_texts_without_a_vector_say_nothing(tmp_path: Path, honest: Rows) -> None:
    """What the service cannot embed again is left out; all of it, and nothing was checked."""
    check = Check(Verify.FULL, NGRAMS, _file(tmp_path), lambda texts: [None] * len(texts))
    assert check.block(honest.texts[:50], honest.vectors[:50], 3).outcome is Outcome.NOT_CHECKED
    assert check.block([], honest.vectors[:0], 0).outcome is Outcome.NOT_CHECKED


def test_verified_rows_judge_later_ones(tmp_path: Path, honest: Rows) -> None:
    """Small blocks are sampled until a thousand rows are known; then an exchange among sixty is found."""
    service = Service(honest)
    check = _check(tmp_path, service)
    first = check.block(honest.texts[:1_100], honest.vectors[:1_100], 4)
    assert first.survey is not None
    few = honest.part(1_100, 1_160).exchanged(7, 42)
    found = check.block(few.texts, few.vectors, 3)
    assert found.survey is not None
    assert found.survey.earlier == 1_100
    assert {7, 42} <= set(found.faults)
    elsewhere = Check(Verify.FULL, NGRAMS, _file(tmp_path, "another"), service)
    assert elsewhere.block(few.texts, few.vectors, 0).survey is None


def test_kept_rows_are_the_owners_and_hold_no_text(tmp_path: Path, honest: Rows) -> None:
    """Their file is closed to others and has numbers alone; ten thousand of a model, new and old ones."""
    file = _file(tmp_path)
    with NGRAMS.spooled(honest.texts) as spool:
        file.add(spool, honest.vectors)
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
        content = file.path.read_bytes()
        assert not any(
            word.encode() in content for text in honest.texts[:50] for word in text.split() if len(word) > 5
        )
        for seed in range(9):
            file.add(spool, honest.vectors, seed)
    kept = file.read()
    assert kept is not None
    assert len(kept) == len(kept.vectors) == MOST
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


@pytest.mark.parametrize("spoil", [b"", b"{}\n", b"no json\nat all"])
def test_what_is_damaged_or_strange_is_as_if_it_were_not_there(
    tmp_path: Path, honest: Rows, spoil: bytes
) -> None:
    """Nothing is judged by it, and it is written anew."""
    file = _file(tmp_path)
    with NGRAMS.spooled(honest.texts[:20]) as spool:
        file.add(spool, honest.vectors[:20])
        whole = file.path.read_bytes()
        for content in (spoil, whole[:-1], whole[:-9] + b"X" + whole[-8:]):
            file.path.write_bytes(content)
            assert file.read() is None
        file.add(spool, honest.vectors[:20])
    kept = file.read()
    assert kept is not None
    assert len(kept) == 20


def test_a_run_does_not_end_for_what_it_cannot_keep(tmp_path: Path, honest: Rows) -> None:
    """A file where the folder should be: the block is checked all the same."""
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "alignment").write_bytes(b"")
    found = _check(tmp_path, Service(honest)).block(honest.texts[:40], honest.vectors[:40], 2)
    assert found.outcome is Outcome.SOUND
