"""What can be asked of Vertex, and by which names: addresses, paths, verbs, headers, queries.

POST  https://us-central1-aiplatform.googleapis.com  /v1/projects/P/locations/L  /batchPredictionJobs
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

VERSION: Final = "v1"
_JOBS: Final = "batchPredictionJobs"
_PUBLISHER: Final = "publishers/google/models/"
_WIDE: Final = ("us", "eu")
"""Locations of several regions, which have addresses of their own form."""

CANCEL: Final = ":cancel"
EMBED: Final = ":embedContent"
EMBED_MANY: Final = ":batchEmbedContents"
PREDICT: Final = ":predict"
COUNT_TOKENS: Final = ":countTokens"

PAGE_SIZE: Final = "pageSize"
PAGE_TOKEN: Final = "pageToken"  # noqa: S105  (no secret)
FILTER: Final = "filter"

USER_PROJECT: Final = "x-goog-user-project"
"""Header of the project that the use counts for, where it is not the one that is asked."""
SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
"""What a token has to be for."""


def address(location: str) -> str:
    """Return the address that serves a location."""
    if location == "global":
        return "https://aiplatform.googleapis.com"
    if location in _WIDE:
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"


def labelled(label: str, value: str) -> str:
    """Return what `FILTER` is for jobs with a label."""
    return f'labels.{label}="{value}"'


def model_resource(model: str) -> str:
    """Return the resource of a model by its name: Google's own, where the name does not say whose."""
    return model if model.startswith("publishers/") else _PUBLISHER + model


def model_name(resource: str) -> str:
    """Return the name of a model by its resource, the reverse of `model_resource`."""
    return re.sub(f"^(projects/[^/]+/locations/[^/]+/)?{_PUBLISHER}", "", resource)


@dataclass(frozen=True, slots=True)
class Place:
    """One project in one location."""

    project: str
    location: str

    @property
    def resource(self) -> str:
        """Its name as a resource."""
        return f"projects/{self.project}/locations/{self.location}"

    def jobs(self) -> str:
        """Return the path of all its jobs."""
        return f"/{VERSION}/{quote(self.resource, safe='/')}/{_JOBS}"

    def job(self, number: str, verb: str = "") -> str:
        """Return the path of one job, perhaps with what is to be done with it."""
        return f"{self.jobs()}/{quote(number, safe='')}{verb}"

    def model(self, model: str, verb: str) -> str:
        """Return the path at which a model is asked."""
        resource = quote(model_resource(model), safe="/")
        return f"/{VERSION}/{quote(self.resource, safe='/')}/{resource}{verb}"
