"""Where files are: a path here, or an address in an object store or on the Hub, as a pyarrow file system."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlencode, urlsplit

import pyarrow as pa
from pyarrow import fs

from embatch import network
from embatch.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES: Final = ("file", "s3", "gs", "hf")
_SECRET: Final = re.compile(r"([?&]\w*(?:password|secret|token|key)\w*=)[^&]*", re.IGNORECASE)
_OPTIONS: Final = re.compile(r"(.*)\?(\w+=.*)", re.DOTALL)
_PORT: Final = re.compile(r"[^:]*(?::\d*)?|\[.*")
_NO_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_QUOTED: Final = re.compile(r"'.*://.*'", re.DOTALL)
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
    if not _PORT.fullmatch(authority) and "@" not in authority and "@" in path:  # a secret with a / in it
        authority, slash, path = path.rpartition("@")[2].partition("/")
    hidden = _SECRET.sub(r"\1***", path)
    return f"{head}{colons}{authority.rpartition('@')[2]}{slash}{hidden}" if colons else head


def divided(place: str) -> tuple[str, str]:
    """Return an address of a store without its options, and these with their `?`; a path has none.

    Options begin at the last `?` with a name and `=` behind it: any other one is a part of the key or glob.
    """
    found = _OPTIONS.fullmatch(place) if scheme(place) in ("s3", "gs") else None
    return (found[1], f"?{found[2]}") if found else (place, "")


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
                return fs.LocalFileSystem(), str(local(text).absolute())
            case "s3":
                return from_uri(_with_endpoint(text))
            case "gs":
                return _from_gcs(text)
            case "hf":
                return _from_hub(text)
    except (pa.ArrowException, ValueError) as error:
        # The library's words hold the address, with what is secret in it.
        reason = _QUOTED.sub("it", str(error))
        raise InvalidArgument(
            f"{shown(place)} is no address of a file: {reason}; a /, @, # or space in a key or secret stands "
            "there as %2F, %40, %23 or %20",
            field=field,
        ) from None
    except OSError as error:
        raise Unavailable(f"{shown(place)} cannot be reached: {error}", field=field) from None
    raise InvalidArgument(
        f"{kind}:// is not known here: give a path, or one of {', '.join(f'{one}://' for one in SCHEMES)}",
        field=field,
    )


def local(place: str) -> Path:
    """Return the path of a place on this machine, relative where it is given so."""
    if "://" not in place[:7]:
        return Path(place).expanduser()
    # In an address a space is %20; in a path it is a space, and %20 is three characters.
    rest = unquote(place[7:])
    return Path(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest).expanduser()


def from_uri(uri: str) -> tuple[FileSystem, str]:
    """Return the file system of an address and the path in it, as its library takes them. Raises OSError."""
    # What is in a key stands in the address as it is; for the library it is percent-encoded.
    address, options = divided(uri)
    head, _, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    key = quote(_NO_ESCAPE.sub("%25", path), safe="/%")
    system, path = fs.FileSystem.from_uri(f"{head.lower()}://{authority}{slash}{key}{options}")
    return system, path


def _with_endpoint(uri: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint or "endpoint_override=" in uri:
        return uri
    store = urlsplit(endpoint)
    return with_options(uri, endpoint_override=store.netloc, scheme=store.scheme)


def with_options(place: str, **options: str) -> str:
    """Return an address of a store with more options."""
    address, given = divided(place)
    return f"{address}{f'{given}&' if given else '?'}{urlencode(options)}"


def _from_gcs(uri: str) -> tuple[FileSystem, str]:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        # The library's own patience is a quarter of an hour for each call.
        patience = {} if "retry_limit_seconds=" in uri else {"retry_limit_seconds": "60"}
        return from_uri(with_options(uri, **patience) if patience else uri)
    store = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
    system = fs.GcsFileSystem(
        anonymous=True,
        endpoint_override=store.netloc,
        scheme=store.scheme,
        retry_time_limit=timedelta(seconds=10),  # an emulator does not get better by waiting
    )
    address, _ = divided(uri)
    return system, unquote(address.partition("://")[2])


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
