"""A collection of Qdrant: `qdrant://host:6333/NAME`, `qdrant+https://…`, or `qdrant+file:///folder/NAME`.

Points are named by their row in the input, with `id` in the payload; a failed row is no point. One collection
belongs to one run: points of rows beyond its end are removed when it is finished. The key is taken from
QDRANT_API_KEY.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from embatch import network
from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument, Unavailable
from embatch.runs.ids import as_json
from embatch.runs.locations import local, scheme, shown
from embatch.runs.sinks.layout import WrittenOutput, sizes
from embatch.vectors import truncate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embatch.runs.sinks.layout import Layout, Sink

POINTS_AT_ONCE: Final = 512
"""Points of one request."""
_PATIENCE: Final = 10
"""Seconds until a server that says nothing is none."""


def check(place: str, dimensions: Sequence[int], dtype: Dtype, ids: pa.DataType | None) -> None:  # noqa: ARG001
    """As `sinks.check_sink`."""
    if dtype not in (Dtype.FLOAT32, Dtype.FLOAT16):
        raise InvalidArgument("Qdrant quantises by itself: write float32 or float16", field="--dtype")
    client: Any = None
    try:
        client, name = _client(place, _PATIENCE)
        there = _vectors(client, name) if client.collection_exists(name) else None
    except InvalidArgument:
        raise
    except Exception as error:  # noqa: BLE001  (the library's errors have no common root)
        raise InvalidArgument(
            f"{shown(place)} cannot be reached{_hint(place)}: {_reason(error)}; {_remedy(place, error)}",
            field="--out",
        ) from None
    finally:
        if client is not None:
            client.close()
    wanted: dict[str, int | None] = {f"embedding{suffix}": size for suffix, size in sizes(dimensions).items()}
    if there is not None and (
        there.keys() != wanted.keys() or any(size and size != there[name] for name, size in wanted.items())
    ):
        raise InvalidArgument(
            f"{shown(place)} is a collection of other vectors ({_listed(there)}; the run writes "
            f"{_listed(wanted)}): delete it, or name another",
            field="--out",
        )


def _vectors(client: Any, name: str) -> dict[str, int | None]:
    """Return the vectors of a collection, dimensions by name; one without a name is ``."""
    found = client.get_collection(name).config.params.vectors or {}
    named = found if isinstance(found, dict) else {"": found}
    return {str(vector): params.size for vector, params in named.items()}


def _listed(vectors: Mapping[str, int | None]) -> str:
    return ", ".join(
        f"{name or 'without a name'} of {size or 'its'} dimensions" for name, size in vectors.items()
    )


def _reason(error: Exception) -> str:
    """Return what an error says, on one line."""
    phrase = getattr(error, "reason_phrase", None)
    status = f"HTTP {getattr(error, 'status_code', '')} {phrase}" if phrase else ""
    return status or " ".join(str(error).split())[:300] or type(error).__name__


def _address(place: str) -> str:
    """Return where a server is asked."""
    parts = urlsplit(place)
    return f"{'https' if parts.scheme == 'qdrant+https' else 'http'}://{parts.netloc}"


def _hint(place: str) -> str:
    return "" if scheme(place) == "qdrant+file" else network.route(_address(place)).hint


def _remedy(place: str, error: Exception) -> str:
    if getattr(error, "status_code", None) in (401, 403):
        return "give its key in QDRANT_API_KEY"
    if scheme(place) == "qdrant+file":
        return "close whatever has that folder open, or name another"
    return "start Qdrant there, or mend the address; qdrant+file:///folder/NAME needs no server"


def open_(place: str, layout: Layout, notes: Mapping[str, str]) -> Sink:  # noqa: ARG001
    """As `sinks.open_sink`."""
    return QdrantSink(place, layout)


def _client(place: str, timeout: int = 60) -> tuple[Any, str]:
    try:
        from qdrant_client import QdrantClient  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InvalidArgument(
            'qdrant:// needs qdrant-client: pip install "embatch[qdrant]"', field="--out"
        ) from None
    if scheme(place) == "qdrant+file":
        path = _local(place)
        # Else the library opens a database to see whether SQLite minds threads, and never closes it.
        return QdrantClient(path=str(path.parent), force_disable_check_same_thread=True), path.name
    path = PurePosixPath(urlsplit(place).path)
    if not path.name:
        raise InvalidArgument("name the collection: qdrant://host:6333/NAME", field="--out")
    key, address = os.environ.get("QDRANT_API_KEY"), _address(place)
    way = network.route(address)
    beside: dict[str, Any] = {"verify": way.verify, "proxy": way.proxy, "trust_env": False}
    return QdrantClient(
        url=address, api_key=key, timeout=timeout, check_compatibility=False, **beside
    ), path.name


def _local(place: str) -> PurePosixPath:
    """Return the folder and the collection in it that `qdrant+file:///folder/NAME` names, spelled as `file://`."""
    path = PurePosixPath(local(f"file://{place.partition('://')[2]}"))
    if not path.is_absolute() or len(path.parts) < 3:
        raise InvalidArgument(
            f"{place}: give the folder from the root on, and the collection: qdrant+file:///folder/NAME",
            field="--out",
        )
    return path


class QdrantSink:
    """See the module."""

    def __init__(self, place: str, layout: Layout) -> None:
        from qdrant_client import models  # noqa: PLC0415  (`check` has looked)

        self._layout, self._models = layout, models
        self._client, self._name = _client(place)
        kind = models.Datatype.FLOAT16 if layout.dtype is Dtype.FLOAT16 else models.Datatype.FLOAT32
        wanted = {
            f"embedding{suffix}": models.VectorParams(
                size=size, distance=models.Distance.COSINE, datatype=kind
            )
            for suffix, size in layout.sizes.items()
        }
        self._ask(self._make, wanted)

    def _make(self, wanted: Mapping[str, Any]) -> None:
        if not self._client.collection_exists(self._name):
            self._client.create_collection(self._name, vectors_config=dict(wanted))

    def _ask(self, call: Any, *values: Any) -> None:
        try:
            call(*values)
        except Exception as error:  # noqa: BLE001  (the library's errors have no common root)
            raise Unavailable(f"Qdrant refused ({type(error).__name__}): {_reason(error)}") from None

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`."""
        forms = {f"embedding{suffix}": truncate(vectors, size) for suffix, size in self._layout.sizes.items()}
        names = as_json(ids)
        good = [at for at, error in enumerate(errors) if error is None]
        failed = [first + at for at, error in enumerate(errors) if error is not None]
        for begin in range(0, len(good), POINTS_AT_ONCE):
            points = [
                self._models.PointStruct(
                    id=first + at,
                    vector={name: form[at].tolist() for name, form in forms.items()},
                    payload={"id": names[at]},
                )
                for at in good[begin : begin + POINTS_AT_ONCE]
            ]
            self._ask(lambda points=points: self._client.upsert(self._name, points, wait=True))
        if failed:
            self._ask(
                lambda: self._client.delete(self._name, self._models.PointIdsList(points=failed), wait=True)
            )

    def holds(self, first: int, rows: int, failed: int) -> bool:
        """As `Database.holds`."""
        found: list[Any] = []
        for begin in range(first, first + rows, POINTS_AT_ONCE):
            names = list(range(begin, min(begin + POINTS_AT_ONCE, first + rows)))
            self._ask(
                lambda names=names: found.extend(
                    self._client.retrieve(self._name, names, with_payload=False, with_vectors=False)
                )
            )
        return len(found) == rows - failed

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:
        """As `Sink.finish`. What was rejected was never written: the certificate is looked at first."""
        if not rejected and rows is not None:
            self._ask(self._drop_from, rows)
        self.abandon()
        return WrittenOutput(f"collection {self._name}", None)

    def _drop_from(self, row: int) -> None:
        """Remove the points of this row and all after it; points that are named otherwise are not ours."""
        # By their names, in whose order they come: a filter knows no range of them. UUIDs are the last.
        following: Any = row
        while isinstance(following, int):
            found, following = self._client.scroll(
                self._name, limit=POINTS_AT_ONCE, offset=following, with_payload=False, with_vectors=False
            )
            left: list[Any] = [point.id for point in found if isinstance(point.id, int)]
            if left:
                self._client.delete(self._name, self._models.PointIdsList(points=left), wait=True)

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        self._client.close()
