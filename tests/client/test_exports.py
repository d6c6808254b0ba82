"""The public names: pinned, sorted, light to import."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

import embatch

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    "Model",
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


def _annotations(kind: type) -> Iterator[str]:
    """Yield what stands behind the colons and arrows of a public class, its own and its bases'."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "embatch":
            fields = inspect.get_annotations(base).items()
            yield from (annotation for name, annotation in fields if not name.startswith("_"))
            for name, member in vars(base).items():
                function = getattr(member, "fget", None) or getattr(member, "func", None) or member
                if inspect.isfunction(function) and (
                    not name.startswith("_") or (name == "__init__" and base is kind)
                ):
                    yield from function.__annotations__.values()


def test_what_public_classes_take_and_return_is_public() -> None:
    """Whoever annotates a function of theirs finds every name at one place."""
    for name in ("batch", "errors", "states", "vectors", "client.results", "client.models", "client.base"):
        importlib.import_module(f"embatch.{name}")
    homes = [module for name, module in sys.modules.items() if name.startswith("embatch.")]
    ours = {
        name
        for home in homes
        for name, value in vars(home).items()
        if getattr(value, "__module__", "") == home.__name__
    }
    named = {
        word
        for kind in map(embatch.__getattr__, NAMES)
        if isinstance(kind, type)
        for annotation in _annotations(kind)
        for word in re.findall(r"\w+", str(annotation))
    }
    assert {"Batch", "BatchResult", "ContentEmbedding", "Model", "Request", "TaskType"} <= named & ours
    assert sorted(name for name in named & ours if name not in NAMES) == []


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
