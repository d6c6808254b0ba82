"""The engine of the tests: known numbers, options, and texts that do harm on purpose."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from embatch.engine.hashing import POISON, Panic, load
from embatch.engine.protocol import EngineSpec, Shape
from embatch.errors import InvalidArgument


def spec(**options: str) -> EngineSpec:
    """Return a hashing spec."""
    return EngineSpec("hashing", "m", options=options)


def test_the_same_numbers_on_every_machine() -> None:
    """The vector of a text is what SplitMix64 in plain integers gives: two machines cannot differ."""
    vector = load(spec(dimensions="4")).forward(["hello"], Shape(1, 16))[0]
    state = int.from_bytes(hashlib.blake2b(b"m|hello", digest_size=8).digest())
    numbers, most = [], (1 << 64) - 1
    for step in range(1, 5):
        drawn = (state + step * 0x9E3779B97F4A7C15) & most
        drawn = ((drawn ^ (drawn >> 30)) * 0xBF58476D1CE4E5B9) & most
        drawn = ((drawn ^ (drawn >> 27)) * 0x94D049BB133111EB) & most
        numbers.append(((drawn ^ (drawn >> 31)) >> 32) - (1 << 31))
    np.testing.assert_allclose(vector, np.array(numbers) / math.hypot(*numbers), atol=1e-7)
    np.testing.assert_allclose(vector, [-0.4132796, 0.5851042, -0.5922598, 0.3688921], atol=1e-6)


def test_model_and_text_decide() -> None:
    """Another model gives other numbers for a text, and so does another text."""
    one, two = load(spec()), load(EngineSpec("hashing", "other"))
    shape = Shape(2, 16)
    assert one.describe().identity != two.describe().identity
    assert not np.allclose(one.forward(["a"], shape), two.forward(["a"], shape))
    a, b = one.forward(["a", "b"], shape)
    assert abs(float(a @ b)) < 0.6


def test_options() -> None:
    """Dimensions, limit and delay can be set; anything else is refused by name."""
    engine = load(spec(dimensions="7", max_tokens="2", delay="0.05"))
    encoded = engine.encode(["12345678", "123456789"])
    assert (encoded.lengths.tolist(), encoded.truncated.tolist()) == ([2, 2], [False, True])
    start = time.monotonic()
    assert engine.forward(encoded.rows, Shape(2, 2)).shape == (2, 7)
    assert time.monotonic() - start >= 0.05
    for wrong in (
        {"dimensions": "0"},
        {"dimensions": "many"},
        {"delay": "-1"},
        {"delay": "nan"},
        {"dim": "3"},
    ):
        with pytest.raises(InvalidArgument):
            load(spec(**wrong))


def test_poison_is_off_by_default() -> None:
    """Without the option such texts are texts like any other."""
    engine = load(spec())
    texts = [f"embatch-poison:{word}" for word in POISON]
    assert np.isfinite(engine.forward(engine.encode(texts).rows, Shape(8, 16))).all()


def test_poison_that_answers() -> None:
    """NaN spoils one row, the wrong shape all of them, a panic is no Exception."""
    engine = load(spec(poison="1"))
    vectors = engine.forward(["fine", "embatch-poison:nan"], Shape(2, 16))
    assert np.isfinite(vectors[0]).all()
    assert not np.isfinite(vectors[1]).all()
    assert engine.forward(["embatch-poison:shape"], Shape(1, 16)).shape == (1, 63)
    with pytest.raises(Panic):
        engine.encode(["a panic: embatch-poison:panic-encode!"])
    assert not issubclass(Panic, Exception)
    assert engine.encode(["embatch-poison:segvx", "embatch-poison:shape-shifter"]).lengths.shape == (2,)


PROGRAM = """
import sys
from embatch.engine.hashing import load
from embatch.engine.protocol import EngineSpec, Shape
engine = load(EngineSpec("hashing", "m", options={"poison": "1"}))
print("loaded", flush=True)
rows = engine.encode(["embatch-poison:" + sys.argv[1]]).rows
print("encoded", flush=True)
engine.forward(rows, Shape(1, 16))
print("survived", flush=True)
"""


@pytest.mark.parametrize(("word", "code"), [("segv", -11), ("abort", -6), ("exit", 0)])
def test_poison_that_kills(word: str, code: int) -> None:
    """The process ends in `forward`, each word in its own way."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "loaded\nencoded\n")


@pytest.mark.parametrize(
    ("word", "said"), [("hang", ["loaded\n", "encoded\n"]), ("hang-encode", ["loaded\n"])]
)
def test_poison_that_hangs(word: str, said: list[str]) -> None:
    """The call never comes back."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, word], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline() for _ in said] == said
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
        finally:
            process.kill()
        assert process.stdout.read() == ""
