"""Where files are: a path here, or an address in an object store or on the Hub, as a pyarrow file system."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from embatch import network
from embatch.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES: Final = ("file", "s3", "gs", "hf")
_SECRET: Final = re.compile(r"([?&]\w*(?:password|secret|token|key)\w*=)[^&]*", re.IGNORECASE)
SUFFIX: Final = ".embatch"
"""What the folder of a run's ledger is called, behind the name of its output."""


def scheme(place: str | Path) -> str:
    """Return the scheme of an address, `file` for a path."""
    head, colons, _ = str(place).partition("://")
    return head.lower() if colons else "file"


def shown(place: str | Path) -> str:
    """Return an address for people and logs: without a user, a password or another secret in it."""
    head, colons, rest = str(place).partition("://")
    authority, slash, path = rest.partition("/")
    hidden = _SECRET.sub(r"\1***", path)
    return f"{head}{colons}{authority.rpartition('@')[2]}{slash}{hidden}" if colons else head


def resolve(place: str | Path, field: str = "IN") -> tuple[FileSystem, str]:
    """Return the file system of a place, and the path in it. Nothing is opened.

    `s3://` takes keys, region and endpoint from where the AWS tools take them (AWS_ENDPOINT_URL_S3 or
    AWS_ENDPOINT_URL for a store that is not Amazon's), or from the address
    (`s3://bucket/key?endpoint_override=host:9000&scheme=http`); `gs://` Google's default credentials, or
    STORAGE_EMULATOR_HOST; `hf://datasets/OWNER/NAME/path` the Hub with HF_TOKEN.

    Raises:
        InvalidArgument: the scheme is not known, or a library for it is missing; `field` names it.
        Unavailable: the store was asked for the bucket's region and does not answer.
    """
    kind = scheme(place)
    text = str(place)
    try:
        match kind:
            case "file":
                # In an address a space is %20; in a path it is a space, and %20 is three characters.
                path = Path(unquote(text[7:]) if "://" in text[:7] else text).expanduser().absolute()
                return fs.LocalFileSystem(), str(path)
            case "s3":
                return _from_uri(_with_endpoint(text))
            case "gs":
                return _from_gcs(text)
            case "hf":
                return _from_hub(text)
    except (pa.ArrowException, ValueError) as error:
        raise InvalidArgument(f"{shown(place)} is no address of a file: {error}", field=field) from None
    except OSError as error:
        raise Unavailable(f"{shown(place)} cannot be reached: {error}", field=field) from None
    raise InvalidArgument(
        f"{kind}:// is not known here: give a path, or one of {', '.join(f'{one}://' for one in SCHEMES)}",
        field=field,
    )


def _from_uri(uri: str) -> tuple[FileSystem, str]:
    # What is in a key stands in the address as it is; for the library it is percent-encoded.
    parts = urlsplit(uri)
    system, path = fs.FileSystem.from_uri(urlunsplit(parts._replace(path=quote(parts.path, safe="/%"))))
    return system, path


def _with_endpoint(uri: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint or "endpoint_override=" in uri:
        return uri
    store = urlsplit(endpoint)
    return _with_query(uri, endpoint_override=store.netloc, scheme=store.scheme)


def _with_query(uri: str, **options: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **options})))


def _from_gcs(uri: str) -> tuple[FileSystem, str]:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        # The library's own patience is a quarter of an hour for each call.
        patience = {} if "retry_limit_seconds=" in uri else {"retry_limit_seconds": "60"}
        return _from_uri(_with_query(uri, **patience))
    store = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
    system = fs.GcsFileSystem(
        anonymous=True,
        endpoint_override=store.netloc,
        scheme=store.scheme,
        retry_time_limit=timedelta(seconds=10),  # an emulator does not get better by waiting
    )
    parts = urlsplit(uri)
    return system, f"{parts.netloc}{parts.path}"


def _from_hub(uri: str) -> tuple[FileSystem, str]:
    try:
        from huggingface_hub import HfFileSystem  # noqa: PLC0415  (an optional part)
    except ImportError:
        raise InvalidArgument(
            'hf:// needs huggingface_hub: pip install "embatch[local]"', field="IN"
        ) from None
    network.hub()  # what is wrong with the environment would look like a file that is not there
    handler: Any = fs.FSSpecHandler  # its stub leaves methods out
    return fs.PyFileSystem(handler(HfFileSystem())), uri.removeprefix("hf://")
