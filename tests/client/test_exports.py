"""The public names: pinned, sorted, light to import."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import embatch

NAMES = [
    "AlreadyExists",
    "AsyncClient",
    "Batch",
    "BatchFailed",
    "BatchNotCompleted",
    "BatchResult",
    "BatchStats",
    "BatchTimeout",
    "BatchUsage",
    "Client",
    "Code",
    "ConnectionFailed",
    "ContentEmbedding",
    "DataLoss",
    "EmbatchError",
    "EngineTrouble",
    "FailedPrecondition",
    "FailedRows",
    "IllegalTransition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "Reason",
    "Request",
    "RequestError",
    "ResourceExhausted",
    "State",
    "TaskType",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "__version__",
]


def test_the_surface_is_pinned_and_sorted() -> None:
    """A new name is a decision: it is added here as well."""
    assert embatch.__all__ == NAMES == sorted(NAMES)
    assert dir(embatch) == NAMES


def test_every_name_is_there() -> None:
    """Each is loaded from its home when it is first asked for."""
    for name in NAMES:
        assert getattr(embatch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Manager'"):
        _ = embatch.Manager


def test_the_version_is_the_packages() -> None:
    """It stands in one place."""
    assert embatch.__version__ == version("embatch")


def _loaded(code: str) -> set[str]:
    script = f"import sys; {code}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_library() -> None:
    """Engine processes import it too; they need no HTTP client."""
    assert not _loaded("import embatch") & {"httpx2", "pydantic", "numpy", "pyarrow", "orjson"}


def test_the_client_never_loads_the_service() -> None:
    """`Client` works where only the base is installed."""
    loaded = _loaded("from embatch import AsyncClient, Client; Client(); AsyncClient('http://host')")
    assert not loaded & {"fastapi", "uvicorn", "sqlalchemy", "alembic", "openvino", "tokenizers", "torch"}
