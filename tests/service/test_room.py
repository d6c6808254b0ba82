"""What may be claimed beside what is at work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embatch.service.room import AtWork, Room, room

SLOTS = 8
AT_WORK = st.lists(
    st.builds(AtWork, st.sampled_from("abcdefgh"), st.sampled_from(["one", "two"]), st.integers(-2, 2)),
    max_size=7,
)


def _of(*batches: str, model: str = "one", priority: int = 0) -> list[AtWork]:
    return [AtWork(batch, model, priority) for batch in batches]


def test_there_is_room_for_anything_beside_nothing() -> None:
    """And for the second shard of a batch."""
    assert room([], SLOTS) == Room()
    assert room(_of("a"), SLOTS) == Room()
    assert room(_of("a"), 2) == Room()


def test_two_shards_of_a_batch_are_enough() -> None:
    """Others have room, below its priority those of its model alone, whose engine sees to the order."""
    found = room(_of("a", "a", priority=3), SLOTS)
    assert found == Room(frozenset("a"), 3, frozenset({"one"}))


def test_beside_three_one_shard_of_a_batch_is_enough() -> None:
    """So that many large batches leave room for a small one."""
    assert room(_of("a", "b"), SLOTS).crowded == frozenset()
    assert room(_of("a", "a", "b"), SLOTS).crowded == frozenset("ab")
    assert room(_of("a", "b", "c"), SLOTS).crowded == frozenset("abc")


def test_nothing_lower_of_another_model_is_claimed_beside_what_still_waits() -> None:
    """Two engines would share the cores, whatever the priorities."""
    both = [*_of("a", "a", priority=5), *_of("b", "b", model="two", priority=5), *_of("c", priority=1)]
    found = room(both, SLOTS)
    assert (found.least, found.beside) == (5, frozenset({"one", "two"}))
    lower = [*_of("a", "a", priority=5), *_of("b", "b", model="two", priority=4)]
    assert room(lower, SLOTS).beside == frozenset({"one"})


def test_the_last_slot_is_for_what_comes_before_everything() -> None:
    """Of any model; where there are few slots none is set aside."""
    found = room([*_of("a", "b", "c", "d", "e", "f"), *_of("g", priority=7)], SLOTS)
    assert (found.least, found.beside) == (8, frozenset())
    assert room(_of("a", "b", "c"), 4).least == 0


@given(AT_WORK)
def test_a_batch_of_the_highest_priority_always_has_room(at_work: list[AtWork]) -> None:
    """Unless it has its shards at work: no two of any other keep it out."""
    found = room(at_work, SLOTS)
    above = max((one.priority for one in at_work), default=0) + 1
    assert "new" not in found.crowded
    assert found.least is None or found.least <= above
    for batch in found.crowded:
        assert any(one.batch == batch for one in at_work)
