"""Where the target `vertex` is, by arguments and by the variables that Google's clients take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from embatch.client import arguments
from embatch.client.providers import vertex_lines, vertex_regions, vertex_staging
from embatch.client.providers.provider import Capabilities, Target
from embatch.client.providers.vertex import VERTEX_MODEL, Vertex
from embatch.client.providers.vertex_auth import ApplicationDefault, check_installed
from embatch.errors import InvalidArgument
from embatch.wire.vertex import routes, storage

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT: Final = "GOOGLE_CLOUD_PROJECT"
LOCATION: Final = "GOOGLE_CLOUD_LOCATION"
BASE_URL: Final = "GOOGLE_VERTEX_BASE_URL"
_PROJECT_FORM: Final = re.compile(r"[a-z0-9][a-z0-9.:-]{0,98}[a-z0-9]")
_LOCATION_FORM: Final = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")
_IN_FLIGHT: Final = 20
"""Jobs of one run at once. Vertex names no limit, and queues what is too much for it."""
_QUEUE_SECONDS: Final = 96 * 3600.0
"""A job may queue for 72 hours, and is worked within 24."""


def target(key: str | None, environ: Mapping[str, str]) -> Target:
    """Return the target `vertex`, by the variables that Google's clients take, and our own for the bucket.

    Raises:
        InvalidArgument: no project or location, something that can be none, or google-auth is not there.
    """
    if key:
        raise InvalidArgument(
            "vertex takes no key: it uses Google's application default credentials. Leave api_key out",
            field="api_key",
        )
    project = _given("project", PROJECT, environ, _PROJECT_FORM, "my-project")
    location = _given("location", LOCATION, environ, _LOCATION_FORM, "us-central1")
    url = arguments.web_address(environ.get(BASE_URL, "").strip() or routes.address(location))
    if url is None:
        raise InvalidArgument(f"{BASE_URL} must be an address such as https://host", field=BASE_URL)
    check_installed()
    emulator = vertex_staging.address(environ)
    if emulator is not None and arguments.web_address(emulator) is None:
        raise InvalidArgument(f"{vertex_staging.EMULATOR} is no address", field=vertex_staging.EMULATOR)
    provider = Vertex(
        "vertex",
        Capabilities(
            inline_bytes=0,
            inline_requests=0,
            interactive_requests=25,  # they may have to be asked one by one
            interactive_calls=4,
            counted_requests=100,
            batches_in_flight=_IN_FLIGHT,
            file_bytes=vertex_lines.FILE_BYTES,
            file_requests=vertex_lines.REQUESTS,
            time_limit=lambda _: _QUEUE_SECONDS,
        ),
        model=VERTEX_MODEL,
        place=routes.Place(project, location),
        staging=vertex_staging.place(environ.get(vertex_staging.STAGING)),
        emulator=emulator,
        regions=vertex_regions.load(environ.get(vertex_regions.VARIABLE) or None),
    )
    others = (emulator or storage.ADDRESS,)
    return Target(url, provider, credential=ApplicationDefault(), others=others)


def _given(name: str, variable: str, environ: Mapping[str, str], form: re.Pattern[str], example: str) -> str:
    found = environ.get(variable, "").strip()
    if not found:
        raise InvalidArgument(
            f"the vertex target needs a {name}: give {name}=, --{name}, or set {variable}", field=name
        )
    if not form.fullmatch(found):
        raise InvalidArgument(f"{name} must be one of Google's, such as {example} ({variable})", field=name)
    return found
