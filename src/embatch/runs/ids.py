"""What an id is: how one of any Arrow type is kept, joined over files, and written by each kind of output.

An id is kept in its own type where that says all there is: dictionaries, run-ends and views are laid out
plainly, an extension type but the UUID is what it is stored as. Where files differ, the common type is one in
which every id has the same digits as before: a wider integer, bytes of any length. Where there is none it is
text, the same words that an output of text has for it. Bytes and anything else have no common words: hex
digits could be those of a number or a name.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from embatch.runs import iso8601

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

types: Any = pa.types  # its stubs leave functions out
array_of: Any = pa.array
compute: Any = pc

_TEXT: Final = pa.string()
_UUID: Any = pa.uuid()
_NUL: Final = re.compile(r"(?<!\\)(\\*)(?:\0|(u0000))")
_WHOLE_DIGITS: Final = {8: 3, 16: 5, 32: 10, 64: 20}


class Holder(Enum):
    """A kind of output whose columns have types of its own."""

    PARQUET = "parquet"
    ARROW = "arrow"
    LANCE = "lance"
    POSTGRES = "postgres"


class Unkept(ValueError):
    """No id can be of this type."""


def is_text(kind: Any) -> bool:
    """Return whether a kept type is text."""
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_uuid(kind: Any) -> bool:
    return bool(kind == _UUID)


def _is_bytes(kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


# how an id is kept


def kept(kind: Any) -> Any:
    """Return the type in which ids of an Arrow type are kept; `null` where nothing is known of it yet.

    Raises:
        Unkept: a union, or what holds one.
    """
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return kept(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return kind if _is_uuid(kind) else kept(kind.storage_type)
    if types.is_string_view(kind):
        return _TEXT
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_decimal32(kind) or types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if types.is_union(kind):
        raise Unkept
    return _kept_nested(kind) if types.is_nested(kind) else kind


def _kept_nested(kind: Any) -> Any:
    children = [kept(kind.field(at).type) for at in range(kind.num_fields)]
    plain = [kind.field(at).type for at in range(kind.num_fields)] == children
    # What is dictionary-encoded or a view within a list, or a list by another layout, is kept as its JSON.
    return kind if plain and not (types.is_list_view(kind) or types.is_large_list_view(kind)) else _TEXT


def joined(one: Any, other: Any) -> Any:
    """Return the type in which ids of two kept types stand beside each other, `None` where there is none."""
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    for join in (_joined_numbers, _joined_bytes, _joined_moments):
        common = join(one, other)
        if common is not None:
            return common
    if _is_bytes(one) or _is_bytes(other):
        return None
    return pa.large_string() if pa.large_string() in (one, other) else _TEXT


def _joined_numbers(one: Any, other: Any) -> Any:
    if types.is_floating(one) and types.is_floating(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    if types.is_integer(one) and types.is_integer(other):
        return _joined_whole(one, other)
    if _scale(one) is None or _scale(one) != _scale(other):
        return None
    digits = max(_digits(one), _digits(other))
    return pa.decimal128(digits, _scale(one)) if digits <= 38 else pa.decimal256(digits, _scale(one))


def _joined_whole(one: Any, other: Any) -> Any:
    if types.is_signed_integer(one) == types.is_signed_integer(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    signed, unsigned = (one, other) if types.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits, pa.decimal128(20, 0))


def _scale(kind: Any) -> int | None:
    """Return the digits behind the point, `None` where that is no fixed number."""
    return 0 if types.is_integer(kind) else kind.scale if types.is_decimal(kind) else None


def _digits(kind: Any) -> int:
    return _WHOLE_DIGITS[kind.bit_width] if types.is_integer(kind) else int(kind.precision)


def _joined_bytes(one: Any, other: Any) -> Any:
    if not all(_is_bytes(kind) or _is_uuid(kind) for kind in (one, other)):
        return None
    if {one, other} == {_UUID, pa.binary(16)}:
        return _UUID
    return pa.large_binary() if pa.large_binary() in (one, other) else pa.binary()


def _joined_moments(one: Any, other: Any) -> Any:
    if types.is_date(one) and types.is_date(other):
        return pa.date64()
    zoned = types.is_timestamp(one) and types.is_timestamp(other) and one.tz and other.tz
    # Of two units neither holds all of the other: years far away, or parts of a second.
    return pa.timestamp(one.unit, "UTC") if zoned and one.unit == other.unit else None


def holds(kind: Any, other: Any) -> bool:
    """Return whether ids of a type, as a file has it, lose nothing in a kept type."""
    try:
        return bool(joined(kind, kept(other)) == kind)
    except Unkept:
        return False


def as_kept(array: Any, kind: Any) -> Any:
    """Return ids of any type as those of a kept type that `holds` them."""
    if array.type == kind:
        return array
    if types.is_null(array.type):
        return pa.nulls(len(array), kind)
    plain = _plain(array)
    if is_text(kind) and not (is_text(plain.type) or types.is_string_view(plain.type)):
        return as_text(array, kind)
    if _is_uuid(kind):
        return pa.ExtensionArray.from_storage(_UUID, plain.cast(pa.binary(16)))
    if types.is_timestamp(kind):  # of another zone: the same numbers, whether anybody knows the zone or not
        return plain.view(kind)
    return plain.cast(kind)


def broken(array: Any) -> list[int]:
    """Return the positions of ids of a kept type with a text that is not UTF-8: no writer checks it."""
    if _sound(array):
        return []
    return [at for at in range(len(array)) if not _sound(array.slice(at, 1))]


def _sound(array: Any) -> bool:
    kind = array.type
    if is_text(kind):
        large = types.is_large_string(kind)
        try:
            array.cast(pa.large_binary() if large else pa.binary()).cast(kind)
        except pa.ArrowInvalid:
            return False
    elif types.is_map(kind):
        return _sound(_as_list(array))
    elif types.is_nested(kind):
        fields = array.flatten()
        return all(map(_sound, fields)) if types.is_struct(kind) else _sound(fields)
    return True


def _plain(array: Any) -> Any:
    """Return an array as one of its values, without dictionary, run-ends or extension."""
    while True:
        if types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif types.is_run_end_encoded(array.type):
            array = compute.run_end_decode(array)
        elif isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        else:
            return array


# how it is written


def written(kind: Any, holder: Holder) -> Any:
    """Return the type that a column of ids has in an output, as Arrow; for Postgres as a word of SQL.

    Where an output knows no type that holds every id it is text.
    """
    try:
        kind = kept(kind)
    except Unkept:
        kind = _TEXT
    if holder is Holder.POSTGRES:
        return _postgres(kind)
    lacking = {Holder.PARQUET: _not_parquet, Holder.LANCE: _not_lance}.get(holder)
    return _TEXT if lacking is not None and lacking(kind) else kind


def _postgres(kind: Any) -> str:
    if types.is_integer(kind) and kind != pa.uint64():
        return "bigint"
    if kind == pa.uint64() or types.is_decimal(kind):
        return "numeric"
    return "boolean" if types.is_boolean(kind) else "uuid" if _is_uuid(kind) else "text"


def _not_parquet(kind: Any) -> bool:
    """Return whether Parquet has no type for all of these: it knows no seconds and no dates with a time."""
    if types.is_nested(kind):
        fields = [kind.field(at).type for at in range(kind.num_fields)]
        empty = not fields or (types.is_fixed_size_list(kind) and not kind.list_size)
        return empty or any(map(_not_parquet, fields))
    return bool(
        types.is_date64(kind)
        or kind == pa.month_day_nano_interval()
        or ((types.is_timestamp(kind) or types.is_time(kind)) and kind.unit == "s")
        or (types.is_decimal(kind) and kind.scale < 0)
    )


def _not_lance(kind: Any) -> bool:
    """Return whether Lance may not hold these: what it says of lists and structs depends on their rows."""
    return bool(types.is_nested(kind) or kind == pa.month_day_nano_interval())


def as_written(array: Any, kind: Any) -> Any:
    """Return ids as a column of a type that `written` gave for theirs."""
    return array if array.type == kind else as_kept(array, kind)


def as_text(array: Any, kind: Any = _TEXT) -> Any:
    """Return ids as an array of texts, as `as_words` has them."""
    return array_of(as_words(array), kind)


def as_words(array: Any) -> list[str | None]:
    """Return ids as texts, `None` where they are null: as they are, or as the words of their JSON."""
    return [
        said
        if said is None or isinstance(said, str)
        else str(said)
        if type(said) is int
        else orjson.dumps(said).decode()
        for said in as_json(array)
    ]


def as_json(array: Any) -> list[Any]:
    """Return ids as JSON has them, `None` where they are null.

    Whole numbers and floats are numbers, and a float that is none is one of `NaN`, `Infinity`, `-Infinity`;
    decimals are text with all their digits, bytes hex digits, UUIDs as everybody writes them, dates and times
    as ISO 8601 writes them (`iso8601`), instants in UTC. A list is a list, a struct an object, a map a list
    of pairs, and so is a struct with one name twice.
    """
    if _is_uuid(array.type):
        return _each(lambda value: str(UUID(bytes=value)), array.storage.to_pylist())
    array = _plain(array)
    for belongs, say in _SAYING:
        if belongs(array.type):
            return say(array)
    found: list[Any] = array.to_pylist()  # texts, whole numbers, true and false, nothing
    return found


def without_nul(text: str) -> str:
    r"""Return a text for a place that has no NUL: it becomes `\u0000`, and two texts never one.

    Where the words `\u0000` stood already their backslashes are doubled, as are those before a NUL.
    """
    if "\0" not in text and "\\u0000" not in text:
        return text
    return _NUL.sub(lambda found: 2 * found[1] + ("u0000" if found[2] else r"\u0000"), text)


def _each(say: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    return [None if value is None else say(value) for value in values]


def _float(value: float) -> float | str:
    if value - value == 0:  # finite
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124


def _nested(array: Any) -> list[Any]:
    kind = array.type
    there = array.is_valid().to_pylist()
    if types.is_struct(kind):
        names = [kind.field(at).name for at in range(kind.num_fields)]
        rows = _rows(array)
        if len(set(names)) < len(names):
            return [list(map(list, zip(names, row, strict=True))) if row else None for row in rows]
        return [None if row is None else dict(zip(names, row, strict=True)) for row in rows]
    if types.is_map(kind):
        array = _as_list(array)
    # One after the other, as their lengths have it; a null one has none, whatever lies behind it.
    values = iter((_rows if types.is_map(kind) else as_json)(array.flatten()))
    lengths = compute.list_value_length(array).to_pylist()
    return [
        [next(values) for _ in range(length)] if valid else None
        for length, valid in zip(lengths, there, strict=True)
    ]


def _as_list(array: Any) -> Any:
    """Return a map as the list of structs that it is."""
    return array.view(pa.list_(pa.struct([array.type.key_field, array.type.item_field])))


def _rows(array: Any) -> list[Any]:
    """Return what stands in the fields of each struct, in their order; `None` where it is null."""
    nothing: list[Any] = [None] * len(array)  # Arrow loses count of nulls in what is sliced
    columns = [nothing if types.is_null(column.type) else as_json(column) for column in array.flatten()]
    return [
        [column[at] for column in columns] if valid else None
        for at, valid in enumerate(array.is_valid().to_pylist())
    ]


_SAYING: Final[Sequence[tuple[Callable[[Any], object], Callable[[Any], list[Any]]]]] = (
    (types.is_nested, _nested),
    (types.is_floating, lambda array: _each(_float, array.cast(pa.float64()).to_pylist())),
    (types.is_decimal, lambda array: _each("{:f}".format, array.to_pylist())),
    (
        lambda kind: _is_bytes(kind) or types.is_binary_view(kind),
        lambda array: _each(bytes.hex, array.to_pylist()),
    ),
    (types.is_temporal, iso8601.words),
)
"""How values of a type are said, the first that it belongs to."""
