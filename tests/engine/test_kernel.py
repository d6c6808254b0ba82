"""The kernel by itself, against float32 in numpy: every length, every tail, any packing, any company.

The portable build does what the native one does in the order Intel's manual gives, on any processor.
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import KEY, QUERY, SMALL, VALUE, but, least, rows_of, weights

from embatch.engine.amx.library import BLOCK, Unfit
from embatch.engine.protocol import RowsRefused
from embatch.errors import EngineTrouble, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from random_models import Weights

    from embatch.engine.amx.library import PackedModel

pytest_plugins = ("kernel_fixtures",)

SHAPES = {
    "384, heads of 32": {"hidden": 384, "inner": 1536, "heads": 12},
    "384, heads of 64": {"hidden": 384, "inner": 1536, "heads": 6},
    "768, heads of 64": {"hidden": 768, "inner": 3072, "heads": 12},
    "768, heads of 32": {"hidden": 768, "inner": 3072, "heads": 24},
    "1024, heads of 64": {"hidden": 1024, "inner": 4096, "heads": 16},
    "1024, heads of 32": {"hidden": 1024, "inner": 4096, "heads": 32},
    "one head of 32": {"hidden": 32, "inner": 32, "heads": 1},
    "an odd number of panels": {"hidden": 160, "inner": 416, "heads": 5},
    "more inner columns than a chunk": {"hidden": 64, "inner": 1088, "heads": 1},
}
TAILS = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129]


@contextmanager
def packed(library: Path, given_: Weights) -> Iterator[PackedModel]:
    """Return a packed model for a while."""
    model = given_.pack(library)
    try:
        yield model
    finally:
        model.free()


@pytest.fixture(scope="module")
def small(portable: Path) -> Iterator[PackedModel]:
    """A small model that tests share."""
    with packed(portable, weights()) as model:
        yield model


def test_every_length_alone_and_packed(portable: Path) -> None:
    """Every length from 1 to 512 is as in float32, and has the same bytes alone as in random company."""
    given_ = weights(but(hidden=32, inner=32, heads=1, layers=1))
    rows = rows_of(range(1, BLOCK + 1))
    order = np.random.default_rng(2).permutation(len(rows))
    together = np.empty((len(rows), given_.form.hidden), np.float32)
    with packed(portable, given_) as model:
        together[order] = model.forward([rows[row] for row in order])
        alone = np.concatenate([model.forward([row]) for row in rows])
    assert least(together, given_.expected(rows)) >= 0.9995
    assert alone.tobytes() == together.tobytes()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("cls", [False, True])
def test_shapes(portable: Path, name: str, cls: bool) -> None:  # noqa: FBT001
    """Every width, head and pooling is as in float32, and each tail has the same bytes alone."""
    large = SHAPES[name]["hidden"] >= 768
    given_ = weights(but(layers=1 if large else 2, cls=cls, normalize=not cls, **SHAPES[name]))
    rows = rows_of([1, 33] if large else [1, 15, 17, 33])
    with packed(portable, given_) as model:
        found = model.forward(rows)
        alone = np.concatenate([model.forward([row]) for row in rows])
    assert least(found, given_.expected(rows)) >= 0.9995
    assert found.tobytes() == alone.tobytes()


@pytest.mark.parametrize("build", ["vectors", "native"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_build_computes_the_same(
    portable: Path, request: pytest.FixtureRequest, name: str, build: str
) -> None:
    """What AVX-512, and AMX where it is, make of a model is what the portable build makes of it, bit for bit.

    The other tests therefore speak for all.
    """
    other = request.getfixturevalue(build)
    usual = weights(but(layers=1, cls=False, normalize=False, **SHAPES[name]))
    extreme = weights(but(layers=1, **SHAPES[name]), spread=4.0)  # rows of attention in their exact form
    rows = rows_of([1, 33] if SHAPES[name]["hidden"] >= 768 else TAILS)
    for given_ in (usual, extreme):
        with packed(portable, given_) as plain, packed(other, given_) as native:
            assert native.forward(rows).tobytes() == plain.forward(rows).tobytes()
            assert native.exact_rows == plain.exact_rows
            assert plain.exact_rows > 0 or given_ is usual


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 384, "inner": 1536, "heads": 12, "layers": 6},
        {"hidden": 768, "inner": 3072, "heads": 12, "layers": 12},
        {"hidden": 1024, "inner": 4096, "heads": 16, "layers": 6},
    ],
    ids=str,
)
def test_depth(vectors: Path, sizes: dict[str, int]) -> None:
    """Whole models of the usual sizes are as in float32, for texts of up to a block's tokens."""
    given_ = weights(but(**sizes))
    rows = rows_of([1, 2, 17, 33, 64, 129, 260])
    with packed(vectors, given_) as model:
        found = model.forward(rows)
        assert found[3:5].tobytes() == model.forward(rows[3:5]).tobytes()
    assert least(found, given_.expected(rows)) >= 0.9995


def test_sums_in_pieces(portable: Path, pieces: Path) -> None:
    """Where K is taken in pieces the sums are the same, bit for bit, for texts of every number of tiles."""
    given_ = weights(but(hidden=160, inner=416, heads=5, layers=1))
    rows = rows_of([1, 33, 65, 97, 129, 187, 512])
    with packed(portable, given_) as whole, packed(pieces, given_) as cut:
        assert cut.forward(rows).tobytes() == whole.forward(rows).tobytes()


def test_tails(small: PackedModel) -> None:
    """Rows of every number modulo the tile's are as in float32, and none reads what lies beyond its end."""
    rows = rows_of(TAILS)
    found = small.forward(rows)
    assert least(found, weights().expected(rows)) >= 0.9995
    for row, vector in zip(rows, found, strict=True):
        for neighbour in rows_of([1, 16, 40], seed=3):
            assert small.forward([neighbour, row, neighbour])[1].tobytes() == vector.tobytes()


@given(st.lists(st.integers(0, 150), max_size=12), st.randoms(use_true_random=False))
def test_packings(small: PackedModel, lengths: list[int], random: object) -> None:
    """Whatever stands together, in whatever order: the same bytes, and zeros for a row without tokens."""
    rows = rows_of(lengths)
    found = small.forward(rows)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert small.forward([rows[row] for row in order]).tobytes() == found[order].tobytes()
    assert all(not vector.any() for row, vector in zip(rows, found, strict=True) if not len(row))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("bias", [3.0, -3.0])
@pytest.mark.parametrize("heads", [1, 2])
def test_extreme_logits(portable: Path, bias: float, heads: int) -> None:
    """Logits whose powers float32 cannot hold take the exact form: here all of a head are near +-290."""
    given_ = weights(but(heads=heads))
    for layer in given_.layers(QUERY + 1):
        layer[:] = abs(bias) * 32 / SMALL.hidden * heads
    for layer in given_.layers(KEY + 1):
        layer[:] = bias * 3 * (64 / SMALL.hidden * heads) ** -0.5
    rows = rows_of(TAILS)
    with packed(portable, given_) as model:
        found = model.forward(rows)
        assert model.exact_rows > sum(map(len, rows)) / 2
        assert found.tobytes() == np.concatenate([model.forward([row]) for row in rows]).tobytes()
    assert least(found, given_.expected(rows)) >= 0.999


def test_usual_logits_need_no_exact_rows(small: PackedModel) -> None:
    """The fast form serves where nothing is extreme: the count tells the forms apart."""
    before = small.exact_rows
    small.forward(rows_of(TAILS))
    assert small.exact_rows == before


def test_zero_and_denormal_weights(portable: Path) -> None:
    """Zeros give zeros, finite and without a length; denormals are zeros, as the tiles know no others."""
    zeros = weights(spread=0.0)
    denormal = weights(spread=0.0)
    for tensor in zeros.tensors:
        tensor[:] = 0
    for tensor in denormal.tensors:
        tensor[:] = 1e-40
    rows = rows_of(TAILS)
    for given_ in (zeros, denormal):
        with packed(portable, given_) as model:
            assert not model.forward(rows).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(portable: Path, value: float) -> None:
    """One of them anywhere is refused: no vector ever comes of it."""
    for place in range(len(weights().tensors)):
        given_ = weights()
        given_.tensors[place].flat[-1] = value
        with pytest.raises(Unfit, match="infinite or not a number"):
            given_.pack(portable)


def test_a_weight_beyond_bfloat16(portable: Path) -> None:
    """What float32 holds and bfloat16 would round to infinity is refused too."""
    given_ = weights()
    next(given_.layers(VALUE)).flat[-1] = 3.4e38
    with pytest.raises(Unfit, match="in bfloat16"):
        given_.pack(portable)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 48},
        {"hidden": 1056, "heads": 33},
        {"heads": 4},
        {"heads": 3},
        {"inner": 100},
        {"layers": 0},
        {"words": 0},
        {"positions": 0},
        {"epsilon": float("nan")},
    ],
)
def test_shapes_it_does_not_compute(portable: Path, changes: dict[str, float]) -> None:
    """They are refused before anything is read."""
    with pytest.raises(InvalidArgument, match="shape"):
        weights(but(**changes)).pack(portable)


def test_rows_that_are_refused(small: PackedModel) -> None:
    """A token that is not of the model, or a row too long for it, is said to be at fault."""
    for token in (-1, SMALL.words, 2**31 - 1):
        with pytest.raises(RowsRefused, match="token"):
            small.forward([*rows_of([3]), np.array([1, token], np.int32)])
    with pytest.raises(RowsRefused, match="more tokens"):
        small.forward(rows_of([3, BLOCK + 1]))


def test_fewer_positions_than_a_block(portable: Path) -> None:
    """The position table is the limit where it is shorter."""
    with packed(portable, weights(but(positions=20))) as model:
        assert (
            least(model.forward(rows_of([20])), weights(but(positions=20)).expected(rows_of([20]))) >= 0.9995
        )
        with pytest.raises(RowsRefused, match="more tokens"):
            model.forward(rows_of([21]))


def test_no_memory(portable: Path) -> None:
    """Loading or a first call without memory says so, changes nothing, and works once there is some."""
    allow = ctypes.CDLL(str(portable)).embatch_amx_allocations
    try:
        allow(0)
        with pytest.raises(EngineTrouble, match="memory"):
            weights().pack(portable)
        allow(1)
        model = weights().pack(portable)
        with pytest.raises(EngineTrouble, match="memory"):
            model.forward(rows_of([3]))
        allow(-1)
        assert np.isfinite(model.forward(rows_of([3]))).all()
        allow(0)  # what the first call got serves the next ones
        assert np.isfinite(model.forward(rows_of([BLOCK] * 3))).all()
        model.free()
    finally:
        allow(-1)


def test_two_models_and_many_threads(portable: Path, small: PackedModel) -> None:
    """Models do not know of one another, nor do the calls of more threads than there are cores."""
    forms = [but(hidden=96, heads=3), but(layers=1, cls=True)]
    rows = rows_of(TAILS)
    expected = small.forward(rows).tobytes()
    others = [weights(form, seed=9) for form in forms]
    models = [other.pack(portable) for other in others]
    alone = [model.forward(rows).tobytes() for model in models]

    def one(number: int) -> bytes:
        return [*models, small][number % 3].forward(rows).tobytes()

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(one, range(30)))
    assert found == [[*alone, expected][number % 3] for number in range(30)]
    for model in models:
        model.free()


def test_a_forked_process_goes_on(portable: Path) -> None:
    """A child of a process that used a model gives the same bytes, and so does its parent afterwards."""
    script = f"""
import os, sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
from pathlib import Path
from random_models import rows_of, weights
model = weights().pack(Path({str(portable)!r}))
rows = rows_of([5, 70, 33])
before = model.forward(rows).tobytes()
child = os.fork()
if not child:
    os._exit(0 if model.forward(rows).tobytes() == before else 1)
assert os.waitpid(child, 0)[1] == 0
assert model.forward(rows).tobytes() == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_without_forking_gives_the_same(portable: Path, small: PackedModel) -> None:
    """Another process gives the same bytes: nothing hangs on addresses or on what ran before."""
    script = f"""
import sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
from pathlib import Path
from random_models import rows_of, weights
sys.stdout.buffer.write(weights().pack(Path({str(portable)!r})).forward(rows_of({TAILS!r})).tobytes())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == small.forward(rows_of(TAILS)).tobytes()


def test_the_callers_arithmetic_neither_counts_nor_changes(small: PackedModel) -> None:
    """In a thread that rounds upwards vectors are the same, and it still rounds upwards afterwards."""
    math, upwards = ctypes.CDLL("libm.so.6"), 0x800
    rows = rows_of(TAILS)
    expected = small.forward(rows).tobytes()
    before = math.fegetround()
    assert math.fesetround(upwards) == 0
    try:
        found = small.forward(rows).tobytes()
        after = math.fegetround()
    finally:
        math.fesetround(before)
    assert found == expected
    assert after == upwards


def test_freed_models_do_not_add_up(portable: Path) -> None:
    """Packing, using and freeing a model again and again takes the memory of one."""

    def once() -> None:
        with packed(portable, weights(but(hidden=256, heads=8, inner=1024))) as model:
            model.forward(rows_of([1]))

    once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        once()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 40 << 10  # KB: one is 8 MB, all of them would be 320
