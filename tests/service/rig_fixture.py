"""A service of its own for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from service_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running service on an empty folder, with a pool that does as it is told."""
    rig = Rig(tmp_path / "data")
    yield rig
    rig.pool.open()
    rig.stop()
