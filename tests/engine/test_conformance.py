"""The conformance suite on the engines that need neither torch nor a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conformance import CHECKS, check_references
from tiny import Tiny

from embatch.engine import models
from embatch.engine.loading import load
from embatch.engine.protocol import EngineSpec, Shape
from embatch.errors import EngineTrouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embatch.engine.protocol import Engine

TOLERANCE = {"f32": 0.9999, "bf16": 0.999}


@pytest.fixture(scope="module", params=["hashing", "minilm", "tiny"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One engine after another, loaded once."""
    specs: dict[str, Callable[[], EngineSpec]] = {
        "hashing": lambda: EngineSpec("hashing", "any-name", threads=2),
        "minilm": lambda: models.serve_model(models.DEFAULT_MODEL, threads=2).spec,
        "tiny": lambda: EngineSpec(
            "openvino",
            str(Tiny(positions=600, max_tokens=600).write(tmp_path_factory.mktemp("tiny"))),
            threads=2,
        ),
    }
    loaded = load(specs[request.param]())
    loaded.warm()
    yield loaded
    loaded.close()


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(engine: Engine, check: Callable[[Engine, float], None]) -> None:
    """Each engine passes each check in the precision it runs in."""
    check(engine, TOLERANCE[engine.describe().precision])


def test_references() -> None:
    """The default model gives the reference vectors in what this machine would choose, and in float32."""
    chosen = ""
    for precision in ("auto", "f32"):
        if precision != chosen:
            loaded = load(models.serve_model(models.DEFAULT_MODEL, precision=precision).spec)
            chosen = loaded.describe().precision
            check_references(loaded, TOLERANCE[chosen])
            loaded.close()
    assert chosen == "f32"


@pytest.mark.parametrize("name", ["hashing", "openvino"])
def test_a_closed_engine_says_so(name: str) -> None:
    """Closing twice is safe, and a call that comes late is engine trouble, not a hang."""
    model = models.serve_model(models.DEFAULT_MODEL, engine=name)
    loaded = load(model.spec)
    rows = loaded.encode(["late"]).rows
    loaded.close()
    loaded.close()
    for _ in range(2):
        with pytest.raises(EngineTrouble, match="closed"):
            loaded.forward(rows, Shape(1, 16))
