"""Hosted targets as their users have them: variables of the environment that lead to a stand-in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hosted.gemini import GeminiStandIn
from hosted.vertex import VertexStandIn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TARGETS = ("gemini", "vertex")


@contextlib.contextmanager
def hosted_target(name: str) -> Iterator[Mapping[str, str]]:
    """Run what stands in for a target; yield the variables that its user sets."""
    if name == "gemini":
        with GeminiStandIn() as gemini:
            yield {"GOOGLE_GEMINI_BASE_URL": gemini.url, "GEMINI_API_KEY": gemini.key}
        return
    with VertexStandIn() as vertex:
        yield {
            "GOOGLE_VERTEX_BASE_URL": vertex.url,
            "STORAGE_EMULATOR_HOST": vertex.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(vertex.service_account()),
            "GOOGLE_CLOUD_PROJECT": vertex.project,
            "GOOGLE_CLOUD_LOCATION": "us-central1",
            "EMBATCH_STAGING": f"{vertex.bucket}/embatch",
        }
