"""The table of routes: what a client asks at is what a face serves."""

from __future__ import annotations

import re

import pytest

from embatch.errors import InvalidArgument
from embatch.wire.gemini import routes
from embatch.wire.gemini.read_queries import byte_count, integer, is_basic, page_size
from embatch.wire.gemini.routes import VERSIONS, Route

NAMES = {"models/{model:path}": "models/org/name", "batches/{id}": "batches/b", "files/{id}": "files/f"}
ROUTES = {name: route for name, route in vars(routes).items() if isinstance(route, Route)}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_path_to_ask_at_is_one_that_is_served(route: Route, version: str) -> None:
    """Under every version, and by exactly one of the patterns."""
    name = NAMES.get(route.resource)
    path = route.path(version, name or (None if "{" not in route.resource else "runs/r"))
    forms = [re.sub(r"\{\w+\}", "[^/]+", re.sub(r"\{\w+:path\}", ".+", one)) for one in route.patterns()]
    assert sum(re.fullmatch(form, path) is not None for form in forms) == 1
    assert len(set(forms)) == len(VERSIONS) * len(route.before)


def test_the_paths_are_googles() -> None:
    """A few of them, in full."""
    assert routes.CREATE_BATCH.path("v1beta", "models/m") == "/v1beta/models/m:asyncBatchEmbedContent"
    assert routes.UPLOAD.path("v1") == "/upload/v1/files"
    assert routes.LIST_BATCHES.path("v1") == "/v1/batches"
    assert routes.DOWNLOAD.patterns()[:2] == ("/v1/files/{id}:download", "/download/v1/files/{id}:download")


@pytest.mark.parametrize(
    ("text", "size"), [(None, 10), ("", 10), ("0", 10), ("7", 7), ("100", 100), ("999999999999", 100)]
)
def test_the_size_of_a_page(text: str | None, size: int) -> None:
    """The usual one where it is not said, or 0; never more than the most."""
    assert page_size(text, 10, 100) == size


@pytest.mark.parametrize("text", ["-1", "many", "1.5", "+1", " 1", "٣", "1" * 19])
def test_a_size_that_is_none(text: str) -> None:
    """It is refused by name, for batches, files and models alike."""
    with pytest.raises(InvalidArgument, match="0 or more") as refused:
        page_size(text, 10, 100)
    assert refused.value.field == "pageSize"


def test_numbers_in_queries_and_headers() -> None:
    """A whole number may be below 0, a count of bytes may not; neither has more digits than 64 bits."""
    assert (integer(None, "n"), integer("", "n"), integer("-12", "n"), integer("3", "n")) == (
        None,
        None,
        -12,
        3,
    )
    assert (byte_count(None, "n"), byte_count("0", "n")) == (None, 0)
    for text in ("--1", "1-", "-", "x", "²", "1" * 19):
        with pytest.raises(InvalidArgument, match="whole number"):
            integer(text, "n")
    for text in ("", "-1", "x", "1" * 19):
        with pytest.raises(InvalidArgument, match="number of bytes"):
            byte_count(text, "n")


def test_a_view() -> None:
    """In any case; all of it where nothing is said."""
    assert (is_basic(None), is_basic("full"), is_basic("basic")) == (False, False, True)
    for view in ("", "all"):
        with pytest.raises(InvalidArgument, match="BASIC or FULL"):
            is_basic(view)
