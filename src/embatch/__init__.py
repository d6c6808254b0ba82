"""Asynchronous batch embeddings: submit texts, come back for the vectors.

from embatch import Client

with Client() as client:
    batch = client.async_batch_embed_contents(texts, display_name="Knowledge base")
    batch = client.await_batch_completion(batch.name)
    vectors = client.get_batch_embeddings(batch).to_numpy()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from embatch.batch import Batch, BatchStats, BatchUsage, Model, Request, TaskType
    from embatch.client.async_client import AsyncClient
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.errors import (
        AlreadyExists,
        BatchFailed,
        BatchNotCompleted,
        BatchTimeout,
        Code,
        ConnectionFailed,
        DataLoss,
        EmbatchError,
        EngineTrouble,
        FailedPrecondition,
        FailedRows,
        IllegalTransition,
        Internal,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        Reason,
        RequestError,
        ResourceExhausted,
        TooLarge,
        Unauthenticated,
        Unavailable,
    )
    from embatch.states import State
    from embatch.vectors import ContentEmbedding

    __version__: str

__all__ = [
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

# Engine processes and `embatch --help` import this package too: nothing is loaded before it is used.
_HOMES: Final = {
    "AsyncClient": "client.async_client",
    "Batch": "batch",
    "BatchResult": "client.results",
    "BatchStats": "batch",
    "BatchUsage": "batch",
    "Client": "client.client",
    "ContentEmbedding": "vectors",
    "Model": "batch",
    "Request": "batch",
    "State": "states",
    "TaskType": "batch",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  (half the start-up time of --help)

        return version("embatch")
    if name not in __all__:
        raise AttributeError(f"module 'embatch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"embatch.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
