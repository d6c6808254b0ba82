"""Models that do not fit into memory together take turns of half a minute, not of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from service_rig import MODEL, OTHER, Rig, large

from embatch.service.intake import Draft
from embatch.service.staying import STAY_SECONDS, Staying

if TYPE_CHECKING:
    from collections.abc import Sequence

pytest_plugins = ("rig_fixture",)


@pytest.fixture
def begun(rig: Rig) -> Rig:
    """A service whose slots both work for a model that had to be loaded, and is now."""
    rig.pool.gated = True
    rig.service.submit_inline(Draft(display_name="blocker", priority=1000), large(2, "blocker"))
    rig.until(lambda: rig.pool.running == 2)
    rig.pool.ready = {MODEL.name}
    return rig


def order(rig: Rig) -> list[str]:
    """Let the slots go and return each shard's first text in the order worked."""
    calls = len(rig.pool.calls)
    (blocker,) = (one for one in rig.service.list(100, None).items if one.display_name == "blocker")
    rig.service.cancel(blocker.name)
    rig.pool.open()
    rig.until(lambda: all(batch.done for batch in rig.service.list(100, None).items))
    return [str(texts[0]).split(" x")[0].strip() for _, texts, _ in rig.pool.calls[calls:]]


def nearly(found: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether two slots may have begun in this order: neighbours may change places, no more."""
    return sorted(found) == sorted(expected) and all(
        abs(found.index(text) - place) <= 1 for place, text in enumerate(expected)
    )


def submit(rig: Rig, *, priority: int = 0) -> None:
    """Submit a batch of the model that is not loaded, then one of the one that is."""
    rig.service.submit_inline(Draft(model=OTHER.name, priority=priority), large(2, "other"))
    rig.service.submit_inline(Draft(), large(4, "mine"))


def test_what_is_loaded_goes_on_for_half_a_minute(begun: Rig) -> None:
    """Though the other batch came first, and would have its turn."""
    submit(begun)
    expected = [*(f"mine {shard}.0" for shard in range(4)), *(f"other {shard}.0" for shard in range(2))]
    assert nearly(order(begun), expected)


def test_then_the_other_has_its_turn_and_keeps_it(begun: Rig) -> None:
    """Its first shard has it loaded, which takes room; what is loaded then comes first for as long again."""
    submit(begun)
    begun.clock.hurry(STAY_SECONDS + 1)
    assert "other 0.0" in order(begun)[:2]


def test_models_that_are_loaded_take_turns_by_the_shard(begun: Rig) -> None:
    """Nothing has to be loaded for a change, so nobody waits for one."""
    begun.pool.ready = {MODEL.name, OTHER.name}
    submit(begun)
    found = order(begun)
    assert found.index("other 0.0") <= 1
    assert found.index("other 1.0") <= 3


def test_a_higher_priority_waits_for_no_model(begun: Rig) -> None:
    """It is strict."""
    submit(begun, priority=1)
    expected = [*(f"other {shard}.0" for shard in range(2)), *(f"mine {shard}.0" for shard in range(4))]
    assert nearly(order(begun), expected)


def test_the_half_minute_begins_with_the_load() -> None:
    """Each further shard of a loaded model leaves it as it is."""
    staying = Staying()
    assert list(staying.preferred("ab", {"a"}, 0.0)) == []
    staying.took("a", set(), 0.0)
    staying.took("a", {"a"}, 20.0)
    assert list(staying.preferred("ab", {"a"}, STAY_SECONDS - 0.1)) == ["a"]
    assert list(staying.preferred("ab", {"a"}, STAY_SECONDS)) == []
    staying.took("b", {"a"}, 40.0)
    assert set(staying.preferred("abc", {"a", "b"}, 60.0)) == {"a", "b"}
    assert list(staying.preferred("ab", {"a", "b"}, 60.0)) == [], "there is nothing else to load"
