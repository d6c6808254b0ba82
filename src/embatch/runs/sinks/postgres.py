"""A table of Postgres with pgvector: `postgresql://user@host/database?table=NAME`, written with COPY.

Columns `row` (number in the input, the primary key), `id` (see `ids.written`), an embedding for each number
of dimensions (`vector`, `halfvec` for float16, `bit` for bits) and `error`. One table belongs to one run:
rows beyond its end are removed when it is finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, LiteralString
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import orjson

from embatch.dtypes import Dtype
from embatch.errors import InvalidArgument, Unavailable
from embatch.runs.ids import Holder, as_words, without_nul, written
from embatch.runs.sinks.layout import WrittenOutput, sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import psycopg
    import pyarrow as pa
    from numpy.typing import NDArray

    from embatch.runs.sinks.layout import Layout, Sink

_TYPES = {Dtype.FLOAT32: "vector", Dtype.FLOAT16: "halfvec", Dtype.BITS: "bit"}
_NAME_BYTES: Final = 63
"""Postgres cuts what is longer: two tables would become one."""
_PASSWORD_WORDS: Final = ("password", "authentication")


def check(place: str, dimensions: Sequence[int], dtype: Dtype, ids: pa.DataType | None) -> None:
    """As `sinks.check_sink`: all statements of a run are tried on no rows, and taken back."""
    if dtype not in _TYPES:
        raise InvalidArgument("pgvector has no int8: take float32, float16 or bits", field="--dtype")
    address, name = _split(place)
    if any(len(part.encode()) > _NAME_BYTES for part in name.split(".", 1)):
        raise InvalidArgument(
            f"table {name!r}: Postgres cuts names after {_NAME_BYTES} bytes; give a shorter one",
            field="--out",
        )
    with _connected(place) as connection:
        found = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
        if found is None:
            raise InvalidArgument(
                f"{_shown(address)} has no pgvector: install its extension `vector` on that server",
                field="--out",
            )
        _rehearse(connection, address, _Table(name, _columns(ids, sizes(dimensions), dtype)))


def open_(place: str, layout: Layout, notes: Mapping[str, str]) -> Sink:  # noqa: ARG001
    """As `sinks.open_sink`."""
    return PostgresSink(place, layout)


def _split(place: str) -> tuple[str, str]:
    """Return the address without the table, and the table."""
    try:
        parts = urlsplit(place)
    except ValueError as error:  # a bracket that is not closed
        raise InvalidArgument(f"the address of the database cannot be read: {error}", field="--out") from None
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
    except psycopg.OperationalError as error:
        reason, remedy = _reason(error), "start it, or mend host, port and database in the address"
        if any(word in reason for word in _PASSWORD_WORDS):
            remedy = "mend the user, or give the password in PGPASSWORD or ~/.pgpass"
        elif "does not exist" in reason:
            remedy = "create it, or name another one"
        raise InvalidArgument(
            f"{_shown(address)} cannot be reached: {reason}; {remedy}", field="--out"
        ) from None
    except psycopg.Error:  # the library's words hold what it cannot read, such as a password
        raise InvalidArgument(
            "the address of the database cannot be read: a %, @, / or # in a name or password stands there "
            "as %25, %40, %2F or %23, and options are those of libpq",
            field="--out",
        ) from None


def _shown(address: str) -> str:
    """Return an address for people: without a password."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    parts = {name: str(value or "") for name, value in conninfo_to_dict(address).items()}
    user = f"{parts['user']}@" if parts.get("user") else ""
    host, port = parts.get("host") or parts.get("hostaddr") or "", parts.get("port")
    return f"postgresql://{user}{host}{f':{port}' if port else ''}/{parts.get('dbname', '')}"


def _reason(error: psycopg.Error) -> str:
    """Return what an error says, on one line."""
    said = error.diag.message_primary or str(error).splitlines()[0].rpartition(" failed: ")[2]
    return " ".join(said.split())[:300] or type(error).__name__


def _refused(error: psycopg.Error) -> Unavailable:
    return Unavailable(f"the database refused: {_reason(error)}")


def _columns(
    ids: pa.DataType | None, widths: Mapping[str, int | None] | Mapping[str, int], dtype: Dtype
) -> dict[str, str]:
    """Return the columns of a table and their types, without dimensions where they are not known yet."""
    kind = _TYPES[dtype]
    columns = {"row": "bigint", "id": "bigint" if ids is None else written(ids, Holder.POSTGRES)}
    columns |= {f"embedding{suffix}": f"{kind}({size})" if size else kind for suffix, size in widths.items()}
    return columns | {"error": "text"}


class _Table:
    """The statements about the table of a run."""

    def __init__(self, name: str, columns: Mapping[str, str]) -> None:
        from psycopg import sql  # noqa: PLC0415  (whoever asks has connected)

        self.columns = columns
        self._sql, self.name = sql, sql.Identifier(*name.split(".", 1))
        # The temporary one would be found in the place of one that is called alike.
        self._block = sql.Identifier(
            "pg_temp", "embatch_rows" if name == "embatch_block" else "embatch_block"
        )
        self._names = sql.SQL(", ").join(map(sql.Identifier, columns))

    def _filled(self, statement: LiteralString) -> Any:
        sql = self._sql
        listed = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
            for column, kind in self.columns.items()
        )
        updates = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name))
            for name in self.columns
            if name != "row"
        )
        return sql.SQL(statement).format(
            table=self.name, block=self._block, columns=listed, names=self._names, updates=updates
        )

    def make(self, connection: Any) -> dict[str, str]:
        """Make it where it is not there, and the place for a block; return the types of columns it had.

        Who may write to it need not be allowed to make one.
        """
        there: dict[str, str] = dict(
            connection.execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                [self.name.as_string(connection)],
            ).fetchall()
        )
        connection.execute(self._filled("CREATE EXTENSION IF NOT EXISTS vector"))
        if not there:
            make = "CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY (row))"
            connection.execute(self._filled(make))
        connection.execute(self._filled("CREATE TEMPORARY TABLE {block} ({columns})"))
        return there

    def emptied(self) -> Any:
        return self._filled("TRUNCATE {block}")

    def copied(self) -> Any:
        return self._filled("COPY {block} ({names}) FROM STDIN")

    def merged(self) -> Any:
        return self._filled(
            "INSERT INTO {table} ({names}) SELECT {names} FROM {block} "
            "ON CONFLICT (row) DO UPDATE SET {updates}"
        )

    def counted(self) -> Any:
        return self._filled("SELECT count(*) FROM {table} WHERE row >= %s AND row < %s")

    def ended(self) -> Any:
        return self._filled("DELETE FROM {table} WHERE row >= %s")


def _rehearse(connection: Any, address: str, table: _Table) -> None:
    """Refuse a table that a run could not write: made otherwise, or out of the user's reach."""
    import psycopg  # noqa: PLC0415

    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL lock_timeout = '10s'")
            _refuse_other(address, table, table.make(connection))
            connection.execute(table.merged())
            connection.execute(table.counted(), [0, 0])
            connection.execute(table.ended(), [0])
    except psycopg.Error as error:
        hint = f" ({' '.join(error.diag.message_hint.split())})" if error.diag.message_hint else ""
        raise InvalidArgument(
            f"{_shown(address)} cannot be written to: {_reason(error)}{hint}; let its owner permit or make "
            "it, or name another table",
            field="--out",
        ) from None


def _refuse_other(address: str, table: _Table, there: Mapping[str, str]) -> None:
    for column, kind in table.columns.items() if there else ():
        found = there.get(column, "")
        (base, _, size), (wanted, _, embed_options) = found.partition("("), kind.partition("(")
        if base != wanted or (size and embed_options and size != embed_options):
            has = f"is {found}" if found else "is not there"
            raise InvalidArgument(
                f"{_shown(address)} has a table of that name whose column {column!r} {has}, and the run "
                f"writes {kind}: drop that table, or name another",
                field="--out",
            )


class PostgresSink:
    """See the module."""

    def __init__(self, place: str, layout: Layout) -> None:
        self._layout = layout
        self._connection = _connected(place)
        _, self._place = _split(place)
        self._table = _Table(self._place, _columns(layout.ids, layout.sizes, layout.dtype))
        self._run(self._table.make)

    def _run(self, do: Callable[[Any], object]) -> None:
        import psycopg  # noqa: PLC0415

        try:
            do(self._connection)
        except psycopg.Error as error:
            raise _refused(error) from None

    def write(
        self, first: int, ids: pa.Array[Any], vectors: NDArray[np.float32], errors: Sequence[str | None]
    ) -> None:
        """As `Sink.write`: one transaction."""
        import psycopg  # noqa: PLC0415

        forms, widths = self._layout.forms(vectors), self._layout.sizes
        texts = [self._texts(values, widths[suffix]) for suffix, (values, _) in forms.items()]
        rows = zip(as_words(ids), errors, strict=True)
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.execute(self._table.emptied())
                with cursor.copy(self._table.copied()) as copy:
                    for at, (id_, error) in enumerate(rows):
                        found = [None if error is not None else text[at] for text in texts]
                        copy.write_row(
                            (first + at, id_ and without_nul(id_), *found, error and without_nul(error))
                        )
                cursor.execute(self._table.merged())
        except psycopg.Error as error:
            raise _refused(error) from None

    def holds(self, first: int, rows: int, failed: int) -> bool:  # noqa: ARG002  (they are rows too)
        """As `Database.holds`."""
        found: list[tuple[int]] = []
        between = [first, first + rows]
        self._run(
            lambda connection: found.extend(connection.execute(self._table.counted(), between).fetchall())
        )
        return found == [(rows,)]

    def _texts(self, values: NDArray[Any], size: int) -> list[str]:
        if self._layout.dtype is Dtype.BITS:
            bits = np.unpackbits(values, axis=1, count=size) + ord("0")
            return [row.tobytes().decode() for row in bits]
        # The shortest words that read back as the same number.
        return [
            orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY).decode() for row in values.astype(np.float32)
        ]

    def finish(self, *, rejected: bool = False, rows: int | None = None) -> WrittenOutput:
        """As `Sink.finish`. What was rejected was never written: the certificate is looked at first."""
        if not rejected and rows is not None:
            self._run(lambda connection: connection.execute(self._table.ended(), [rows]))
        self.abandon()
        return WrittenOutput(f"table {self._place}", None)

    def abandon(self) -> None:
        """As `Sink.abandon`."""
        self._connection.close()
