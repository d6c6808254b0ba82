"""Requests as an Arrow stream: what a client sends to an embatch service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, cast

from embatch import jsontext
from embatch.batch import Texts
from embatch.wire.arrow import MEDIA_TYPE, ipc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import IOBase

    from embatch.batch import Request


class StreamWriter:
    """Writes requests as an Arrow stream, which an embatch service reads ten times as fast as JSONL."""

    mime_type: ClassVar[str] = MEDIA_TYPE

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa  # noqa: PLC0415  (150 ms that small submits need not pay)

        self._arrow = pa
        names = ("key", "metadata", "text", "task_type", "title")
        fields: list[pa.Field[Any]] = [pa.field(name, pa.string()) for name in names]
        self._schema = pa.schema([*fields, pa.field("dimensions", pa.int32())])
        self._stream = pa.ipc.new_stream(cast("IOBase", file), self._schema)

    def write(self, requests: Sequence[Request]) -> None:
        """Append requests, as one record batch unless they are large."""
        if isinstance(requests, Texts):
            texts, one = requests.texts, requests.like
            columns: dict[str, Any] = {name: [value] * len(texts) for name, value in _columns_of(one).items()}
        else:
            texts = [one.text for one in requests]
            rows = [_columns_of(one) for one in requests]
            columns = {name: [row[name] for row in rows] for name in self._schema.names if name != "text"}
        try:
            columns["text"] = self._arrow.array(texts, self._arrow.string())
        except UnicodeEncodeError:
            # As the service reads them: each that holds a lone surrogate fails alone, for what it is.
            said = [None if text is None else text.encode(errors="surrogatepass") for text in texts]
            columns["text"] = self._arrow.array(said, self._arrow.binary()).view(self._arrow.string())
        batch = self._arrow.RecordBatch.from_pydict(columns, schema=self._schema)
        for piece in ipc.pieces(batch):  # a service bounds what it reads at once
            self._stream.write_batch(piece)

    def finish(self) -> None:
        """Complete the file, which stays open."""
        self._stream.close()


def _columns_of(one: Request) -> dict[str, Any]:
    return {
        "key": one.key,
        "metadata": None if one.metadata is None else jsontext.encode(dict(one.metadata)).decode(),
        "task_type": one.task_type and one.task_type.value,
        "title": one.title,
        "dimensions": one.output_dimensionality,
    }
