"""A table of Postgres with pgvector: `postgresql://user@host/database?table=NAME`, written with COPY.

Columns `row` (number in the input, the primary key), `id`, an embedding for each number of dimensions
(`vector`, `halfvec` for float16, `bit` for bits) and `error`. One table belongs to one run: rows beyond its
end are removed when it is finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import orjson
import pyarrow as pa

from embatch.errors import InvalidArgument, Unavailable
from embatch.numbers import Numbers
from embatch.runs.sinks.layout import Written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg
    from numpy.typing import NDArray

    from embatch.runs.sinks.layout import Layout, Sink

_TYPES = {Numbers.FLOAT32: "vector", Numbers.FLOAT16: "halfvec", Numbers.BITS: "bit"}


def check(place: str, dimensions: Sequence[int], numbers: Numbers) -> None:  # noqa: ARG001
    """As `sinks.check_sink`."""
    if numbers not in _TYPES:
        raise InvalidArgument("pgvector has no int8: take float32, float16 or bits", field="--numbers")
    with _connected(place) as connection:
        found = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    if found is None:
        raise InvalidArgument("this Postgres has no pgvector: install its extension `vector`", field="--out")


def open_(place: str, layout: Layout, notes: Mapping[str, str]) -> Sink:  # noqa: ARG001
    """As `sinks.open_sink`."""
    return PostgresSink(place, layout)


def _split(place: str) -> tuple[str, str]:
    """Return the address without the table, and the table."""
    parts = urlsplit(place)
    options = dict(parse_qsl(parts.query))
    table = options.pop("table", "")
    if not table or "\0" in table:
        raise InvalidArgument("name the table: postgresql://host/database?table=NAME", field="--out")
    return urlunsplit(parts._replace(query=urlencode(options))), table


def _connected(place: str) -> Any:
    try:
        import psycopg  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InvalidArgument(
            'postgresql:// needs psycopg: pip install "embatch[pgvector]"', field="--out"
        ) from None
    address, _ = _split(place)
    try:
        return psycopg.connect(address, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        # The library's words may hold the address with its password.
        raise InvalidArgument(
            f"the database cannot be reached ({type(error).__name__})", field="--out"
        ) from None


def _refused(error: psycopg.Error) -> Unavailable:
    return Unavailable(f"the database refused: {error.diag.message_primary or type(error).__name__}")


class PostgresSink:
    """See the module."""

    def __init__(self, place: str, layout: Layout) -> None:
        from psycopg import sql  # noqa: PLC0415  (`check` has looked)

        self._layout, self._sql = layout, sql
        self._connection = _connected(place)
        _, name = _split(place)
        self._table = sql.Identifier(*name.split(".", 1))
        self._place = name
        kind = _TYPES[layout.numbers]
        whole = pa.types.is_integer(layout.ids)
        self._columns = {"row": "bigint", "id": "bigint" if whole else "text"}
        self._columns |= {f"embedding{suffix}": f"{kind}({size})" for suffix, size in layout.sizes.items()}
        self._columns["error"] = "text"
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(of))
            for column, of in self._columns.items()
        )
        self._run("CREATE EXTENSION IF NOT EXISTS vector")
        self._run(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY (row))").format(self._table, columns)
        )
        self._run(sql.SQL("CREATE TEMPORARY TABLE embatch_block ({})").format(columns))

    def _run(self, statement: Any, *values: object) -> None:
        import psycopg  # noqa: PLC0415

        try:
            self._connection.execute(statement, values or None)
        except psycopg.Error as error:
            raise _refused(error) from None

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`: one transaction."""
        import psycopg  # noqa: PLC0415

        sql, names = self._sql, list(self._columns)
        forms, sizes = self._layout.forms(vectors), self._layout.sizes
        texts = [self._texts(values, sizes[suffix]) for suffix, (values, _) in forms.items()]
        whole = self._columns["id"] == "bigint"
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.execute("TRUNCATE embatch_block")
                with cursor.copy("COPY embatch_block FROM STDIN") as copy:
                    for at, (id_, error) in enumerate(zip(ids.to_pylist(), errors, strict=True)):
                        said = None if id_ is None else id_ if whole else str(id_).replace("\0", "")
                        found = [None if error is not None else text[at] for text in texts]
                        copy.write_row((first + at, said, *found, error and error.replace("\0", "")))
                updates = sql.SQL(", ").join(
                    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names[1:]
                )
                cursor.execute(
                    sql.SQL(
                        "INSERT INTO {} SELECT * FROM embatch_block ON CONFLICT (row) DO UPDATE SET {}"
                    ).format(self._table, updates)
                )
        except psycopg.Error as error:
            raise _refused(error) from None

    def _texts(self, values: NDArray[Any], size: int) -> list[str]:
        if self._layout.numbers is Numbers.BITS:
            bits = np.unpackbits(values, axis=1, count=size) + ord("0")
            return [row.tobytes().decode() for row in bits]
        # The shortest words that read back as the same number.
        return [
            orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY).decode() for row in values.astype(np.float32)
        ]

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> Written:
        """As `Sink.finish`. What was rejected was never written: the certificate is looked at first."""
        if not rejected and rows is not None:
            self._run(self._sql.SQL("DELETE FROM {} WHERE row >= %s").format(self._table), rows)
        self.abandon()
        return Written(f"table {self._place}", None)

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        self._connection.close()
