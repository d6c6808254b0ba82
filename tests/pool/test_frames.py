"""Frames: what is written is read again, and nothing else is taken for a frame."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.engine import frames

HEADERS = st.dictionaries(
    st.text(max_size=9), st.none() | st.integers(-(2**53), 2**53) | st.text() | st.lists(st.integers(0, 9))
)


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=200)), max_size=5))
def test_frames_come_back_in_order(messages: list[tuple[dict[str, object], bytes]]) -> None:
    """Header and body are equal, and the end is `None`."""
    pipe = io.BytesIO()
    for header, body in messages:
        frames.write(pipe, header, body)
    pipe.seek(0)
    for header, body in messages:
        assert frames.read(pipe) == frames.Frame(header, body)
    assert frames.read(pipe) is None


@given(st.data())
def test_a_pipe_that_ends_inside_a_frame_has_ended(data: st.DataObject) -> None:
    """However much of a frame came before the other side died, it is no frame."""
    pipe = io.BytesIO()
    frames.write(pipe, {"type": "finished", "group": 3}, bytes(50))
    whole = pipe.getvalue()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert frames.read(io.BytesIO(part)) is None


@pytest.mark.parametrize(
    "noise",
    [
        b"WARNING: something was printed to the pipe\n",
        struct.pack("<IQ", 5, 0) + b"[1,2]",
        struct.pack("<IQ", 5, 0) + b"{'a'}",
        struct.pack("<IQ", 2, 1 << 60) + b"{}",
        struct.pack("<IQ", 1 << 31, 0),
    ],
)
def test_noise_is_no_frame(noise: bytes) -> None:
    """It is refused without allocating what its lengths pretend."""
    with pytest.raises(ValueError, match=r"not a frame|unexpected|expected"):
        frames.read(io.BytesIO(noise))


def test_arrays_of_numbers_stand_in_a_header_as_lists() -> None:
    """So that token counts need no copy."""
    pipe = io.BytesIO()
    frames.write(pipe, {"tokens": np.array([1, 2], np.int32), "truncated": np.array([True, False])})
    pipe.seek(0)
    assert frames.read(pipe) == frames.Frame({"tokens": [1, 2], "truncated": [True, False]}, b"")
