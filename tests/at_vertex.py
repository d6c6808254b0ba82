"""A stand-in of Vertex that the environment leads to, as it leads Google's own clients."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from hosted.vertex import VertexStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from hosted.behaviour import Behaviour


@contextmanager
def vertex(patch: pytest.MonkeyPatch, behaviour: Behaviour | None = None) -> Iterator[VertexStandIn]:
    """Serve a stand-in, with a bucket and credentials, while the block runs."""
    with VertexStandIn(behaviour) as google:
        patch.setenv("STORAGE_EMULATOR_HOST", google.url)
        patch.setenv("GOOGLE_VERTEX_BASE_URL", google.url)
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.service_account()))
        patch.setenv("EMBATCH_STAGING", f"{google.bucket}/staged")
        patch.setenv("GOOGLE_CLOUD_PROJECT", google.project)
        patch.setenv("GOOGLE_CLOUD_LOCATION", "us-central1")
        yield google
