"""What a run spends: written down before it is begun, known to the next call, and never past the cap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embatch.errors import DataLoss, InvalidArgument
from embatch.runs.deadline import Terms
from embatch.runs.spending import AT_ONCE, BATCH, GIVEN_UP, NAME, Spending

if TYPE_CHECKING:
    from pathlib import Path


def opened(folder: Path, cap: float | None = None) -> Spending:
    """Return the money of a run that goes on, with a cap if there is one."""
    spending = Spending.read(folder, fresh=False)
    if cap is not None:
        spending.keep(Terms(max_cost=cap))
    return spending


def test_what_is_under_way_counts_in_full_for_the_next_call(tmp_path: Path) -> None:
    """The process may end anywhere: what had been begun is there, and what had cost less than thought too."""
    first = opened(tmp_path, 1.0)
    assert first.begin(0, BATCH, 1_000, 0.40)
    assert first.begin(1, BATCH, 1_000, 0.40)
    first.settle(0, BATCH, 900, 0.36)
    again = opened(tmp_path)
    assert again.terms.max_cost == 1.0
    assert again.budget.committed == pytest.approx(0.76)
    assert not again.begin(2, BATCH, 1_000, 0.40)
    assert again.begin(1, BATCH, 1_000, 0.40), "the batch that an earlier call may have created"
    assert again.budget.committed == pytest.approx(0.76)


def test_a_batch_that_is_given_up_stays_on_the_bill(tmp_path: Path) -> None:
    """In full while nobody says what of it was worked; its block pays once more, another way."""
    spending = opened(tmp_path, 1.0)
    spending.begin(0, BATCH, 1_000, 0.30)
    spending.begin(1, BATCH, 1_000, 0.10)
    spending.give_up(0, 1.0)
    spending.give_up(1, 0.5)
    assert spending.begin(0, AT_ONCE, 1_000, 0.60)
    assert not spending.begin(1, AT_ONCE, 1_000, 0.20)
    spending.settle(0, AT_ONCE, 950, 0.57)
    for one in (spending, opened(tmp_path)):
        assert one.by_way() == {GIVEN_UP: (1_500, pytest.approx(0.35)), AT_ONCE: (950, 0.57)}
        assert one.budget.committed == pytest.approx(0.92)


def test_texts_begun_at_once_by_a_call_that_was_killed_are_paid_for(tmp_path: Path) -> None:
    """A batch goes on without its run, what was asked at once does not: the next try is money of its own."""
    opened(tmp_path, 1.0).begin(0, AT_ONCE, 1_000, 0.60)
    again = opened(tmp_path)
    assert not again.begin(0, AT_ONCE, 1_000, 0.60)
    again.keep(Terms(max_cost=1.5))
    assert again.begin(0, AT_ONCE, 1_000, 0.60)
    assert again.budget.committed == pytest.approx(1.2)


def test_a_run_that_begins_anew_owes_nothing_and_keeps_to_nothing(tmp_path: Path) -> None:
    """Neither terms nor money of the one before."""
    first = opened(tmp_path, 1.0)
    first.begin(0, BATCH, 1_000, 0.40)
    anew = Spending.read(tmp_path, fresh=True)
    assert (anew.terms, list(anew)) == (Terms(), [])


def test_a_torn_line_is_cut_and_a_damaged_or_newer_file_is_refused(tmp_path: Path) -> None:
    """What a crash leaves had not begun; what cannot be read may be money."""
    opened(tmp_path, 1.0).begin(0, BATCH, 1_000, 0.40)
    file = tmp_path / NAME
    sound = file.read_bytes()
    file.write_bytes(sound + b'{"paid":{"key":"1.batch.0"')
    assert opened(tmp_path).begin(1, BATCH, 1_000, 0.40)
    assert opened(tmp_path).budget.committed == pytest.approx(0.8)
    file.write_bytes(sound + b"{}\n")
    with pytest.raises(DataLoss, match=r"spending\.jsonl is damaged at line 4"):
        opened(tmp_path)
    file.write_bytes(sound.replace(b'"v":1', b'"v":2'))
    with pytest.raises(InvalidArgument, match="newer version"):
        opened(tmp_path)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("bsaog"), st.floats(0, 1), st.booleans()), max_size=30
    ),
    st.floats(0.1, 3),
)
def test_a_cap_holds_over_calls_that_end_anywhere(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, str, float, bool]], cap: float
) -> None:
    """Whatever is begun, settled and given up, and wherever the process ends between."""
    folder = tmp_path_factory.mktemp("cap")
    spending = opened(folder, cap)
    for number, event, dollars, ends in events:
        if event == "b":
            spending.begin(number, BATCH, 10, dollars)
        elif event == "a":
            spending.begin(number, AT_ONCE, 10, dollars)
        elif event == "g":
            spending.give_up(number, dollars)
        else:
            paid = [one.dollars for one in spending if one.open and one.key.startswith(f"{number}.")]
            spending.settle(number, BATCH if event == "s" else AT_ONCE, 10, min([*paid, dollars]))
        if ends:
            spending = opened(folder)
        assert spending.budget.committed <= cap + 1e-6
        assert spending.budget.committed == pytest.approx(sum(one.dollars for one in spending))
