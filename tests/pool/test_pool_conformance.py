"""The conformance suite on the pool of this machine, and on one that has nothing to do with processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pools
import pytest
from inline_pool import InlinePool
from pool_conformance import CHECKS, check_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embatch.pool.protocol import Pool


@contextmanager
def inline() -> Iterator[Pool]:
    """Open a pool of this process."""
    pool = InlinePool(pools.QUICK)
    try:
        yield pool
    finally:
        pool.close(0.0)


OPEN = {"local": pools.opened, "inline": inline}


@pytest.fixture(scope="module", params=OPEN)
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """One pool after another, each for all checks."""
    with OPEN[request.param]() as made:
        yield made


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(pool: Pool, check: Callable[[Pool], None]) -> None:
    """Each pool passes each check."""
    check(pool)


@pytest.mark.parametrize("kind", OPEN)
def test_closing(kind: str) -> None:
    """Each pool is closed as it should be."""
    with OPEN[kind]() as made:
        check_close(made)
