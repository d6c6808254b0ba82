"""The transition table: what the rest of the system derives from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import IllegalTransition
from embatch.states import ACTIVE, FINAL, TRANSITIONS, Event, State, advance, sources


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_every_history_stays_inside_the_table(events: list[Event]) -> None:
    """From PENDING, any series of events is either an arrow of the table or refused without moving."""
    state = State.PENDING
    for event in events:
        if event in TRANSITIONS[state]:
            state = advance(state, event)
        else:
            with pytest.raises(IllegalTransition, match=f"a {state} batch cannot {event}"):
                advance(state, event)
    assert state in State


def test_final_states_are_exactly_the_ones_without_arrows() -> None:
    """ACTIVE and FINAL split the states, and `final` agrees."""
    assert frozenset(State) == ACTIVE | FINAL
    assert not ACTIVE & FINAL
    assert {state for state in State if state.final} == FINAL
    assert {State.PENDING, State.PROCESSING} == ACTIVE


def test_every_state_can_be_reached_and_every_active_one_can_end() -> None:
    """No state is an island, and no active state is a trap."""
    reached, edge = {State.PENDING}, [State.PENDING]
    while edge:
        for target in TRANSITIONS[edge.pop()].values():
            if target not in reached:
                reached.add(target)
                edge.append(target)
    assert reached == set(State)
    assert all(FINAL & set(TRANSITIONS[state].values()) for state in ACTIVE)


@given(st.sampled_from(Event))
def test_sources_are_the_states_where_an_event_is_allowed(event: Event) -> None:
    """`sources` is the table read backwards."""
    for state in State:
        assert (state in sources(event)) == (event in TRANSITIONS[state])
