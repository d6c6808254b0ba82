"""What a batch that waits for others says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from service_rig import rows

from embatch.batch import WAITS
from embatch.service.intake import Draft
from embatch.states import State

if TYPE_CHECKING:
    from service_rig import Rig

pytest_plugins = ("rig_fixture",)


@pytest.mark.parametrize("ahead", [Draft(priority=5), Draft(priority=5, run="one")])
def test_a_batch_behind_another_names_it(rig: Rig, ahead: Draft) -> None:
    """As long as it has not begun; what was worked first says nothing of that."""
    rig.pool.gated = True
    first = rig.service.submit_inline(ahead, rows(4)).name
    second = rig.service.submit_inline(ahead, rows(4)).name
    rig.until(lambda: rig.pool.running == 2)
    behind = rig.service.submit_inline(Draft(), rows(3)).name
    (note,) = rig.service.get(behind).notes
    assert note.startswith(WAITS)
    assert first in note or second in note
    assert rig.service.get(first).notes == ()
    assert rig.service.health().ready
    rig.pool.open()
    assert rig.done(behind).state is State.COMPLETED
    assert rig.service.get(behind).notes == ()


def test_a_batch_that_waits_in_the_engine_names_who_is_before_it(rig: Rig) -> None:
    """Until the first of its texts is embedded: it is claimed, and has its turn after the higher priority."""
    rig.pool.gated = True
    low = rig.service.submit_inline(Draft(), rows(6)).name
    rig.until(lambda: rig.claimed(low) == 1)
    assert rig.service.get(low).notes == ()
    high = rig.service.submit_inline(Draft(priority=1), rows(6)).name
    rig.until(lambda: rig.claimed(high) == 1)
    (note,) = rig.service.get(low).notes
    assert note.startswith(WAITS)
    assert high in note
    assert rig.service.get(high).notes == ()
    rig.service.update(low, priority=1)
    assert rig.service.get(low).notes == ()
    rig.service.update(low, priority=0)
    rig.pool.allow(1)
    rig.until(lambda: rig.pool.micro_batches == 1)
    rig.pool.open()
    for name in (low, high):
        assert rig.done(name).notes == ()


def test_batches_of_one_run_do_not_complain_of_each_other(rig: Rig) -> None:
    """They follow one another as a rule."""
    rig.pool.gated = True
    names = [rig.service.submit_inline(Draft(run="one"), rows(4)).name for _ in range(3)]
    rig.until(lambda: rig.pool.running == 2)
    assert [rig.service.get(name).notes for name in names] == [(), (), ()]
    rig.pool.open()
    for name in names:
        rig.done(name)
