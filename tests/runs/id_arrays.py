"""Arrays of every Arrow type that an id can have, with its extremes, null and what else is odd about it."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa

array: Any = pa.array  # its stubs know not every type

ZONES = (None, "UTC", "Europe/Berlin", "Mars/Olympus", "+05:30")
BIGGEST = 2**63 - 1


def _numbers() -> dict[str, Any]:
    found: dict[str, Any] = {"bool": array([True, False, None])}
    for bits in (8, 16, 32, 64):
        whole = 2 ** (bits - 1)
        found[f"int{bits}"] = array([-whole, whole - 1, None, 0], f"int{bits}")
        found[f"uint{bits}"] = array([0, 2 * whole - 1, None], f"uint{bits}")
    for name, most, kind in (("half", 65504.0, np.float16), ("float", 3e38, float), ("double", 1e308, float)):
        values = [most, -most, 1.5, 0.0, -0.0, np.nan, np.inf, -np.inf]
        found[name] = array([*map(kind, values), None], name if name != "half" else pa.float16())
    for width, digits, scale in (
        (32, 9, 2),
        (64, 18, 2),
        (128, 38, 2),
        (128, 38, 0),
        (128, 38, 38),
        (128, 5, -2),
        (256, 76, 2),
    ):
        large = Decimal(10**digits - 1).scaleb(-scale, Context(prec=80))
        decimal = getattr(pa, f"decimal{width}")(digits, scale)
        found[f"decimal{width}({digits},{scale})"] = array(
            [large, large.copy_negate(), None, Decimal(0)], decimal
        )
    return found


def _words() -> dict[str, Any]:
    texts = array(["", "007", "7", "a\0b", "ab", r"a\u0000b", None, "é" * 40])
    uuids = array([bytes(range(16)), None, bytes(16)], pa.binary(16))
    return {
        "string": texts,
        "large_string": texts.cast(pa.large_string()),
        "string_view": texts.cast(pa.string_view()),
        "binary": array([b"", b"\0\xff", None, b"\0"]),
        "large_binary": array([b"", b"\0\xff", None], pa.large_binary()),
        "binary_view": array([b"", b"\0\xff", None]).cast(pa.binary_view()),
        "fixed_size_binary(16)": uuids,
        "fixed_size_binary(3)": array([b"abc", None, b"\0\0\0"], pa.binary(3)),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), uuids),
        "json": pa.ExtensionArray.from_storage(pa.json_(), array(['{"a":1}', None, "[1]"])),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), array([1, 0, None], pa.int8())),
    }


def _moments() -> dict[str, Any]:
    far: list[int | None] = [-BIGGEST - 1, BIGGEST, None, 0, 1]
    found: dict[str, Any] = {
        "date32": array([-(2**31), 2**31 - 1, None, 0], pa.int32()).view(pa.date32()),
        "date64": array([*far, 86_400_000], pa.int64()).view(pa.date64()),
        "time32(s)": array([0, 86_399, None], pa.int32()).view(pa.time32("s")),
        "time32(ms)": array([0, 86_399_999, None], pa.int32()).view(pa.time32("ms")),
        "time64(us)": array([0, 86_399_999_999, None], pa.int64()).view(pa.time64("us")),
        "time64(ns)": array([0, 86_399_999_999_999, None], pa.int64()).view(pa.time64("ns")),
        "interval": array([(1, 2, 3), None, (-1, 0, 2**62), (1, 2, -3)], pa.month_day_nano_interval()),
    }
    units: tuple[Any, ...] = ("s", "ms", "us", "ns")
    for unit in units:
        found[f"duration({unit})"] = array(far, pa.int64()).view(pa.duration(unit))
        for zone in ZONES:
            found[f"timestamp({unit},{zone})"] = array(far, pa.int64()).view(pa.timestamp(unit, zone))
    return found


PRIMITIVE = {**_numbers(), **_words(), **_moments(), "null": pa.nulls(3)}


def _nested() -> dict[str, Any]:
    found: dict[str, Any] = {
        "large_list": array([[1, 2], [], None, [None]], pa.large_list(pa.int64())),
        "fixed_size_list": array([[1, 2], None, [None, 3]], pa.list_(pa.int64(), 2)),
        "fixed_size_list(0)": array([[], None], pa.list_(pa.int64(), 0)),
        "list_view": array([[1, 2], None, []], pa.list_view(pa.int64())),
        "struct()": array([{}, None], pa.struct([])),
        "list(dictionary)": array([["a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "list(list)": array([[[1], None], None, []]),
    }
    for name, values in PRIMITIVE.items():
        count = len(values)
        if name.endswith("_view"):  # Arrow cannot put these into lists from Python
            continue
        ends = array([0, 1, 1, count], pa.int32())
        found[f"list({name})"] = pa.ListArray.from_arrays(ends, values)
        mask = array([at == 1 for at in range(count)])
        found[f"struct({name})"] = pa.StructArray.from_arrays([values], ["a"], mask=mask)
        keys = array([f"k{at}" for at in range(count)])
        found[f"map({name})"] = pa.MapArray.from_arrays(ends, keys, values)
    return found


def _encoded() -> dict[str, Any]:
    runs = array([2, 3], pa.int32())
    return {
        "dictionary(string)": array(["a", "b", None, "a"]).dictionary_encode(),
        "dictionary(int64)": array([2**60, -1, None]).dictionary_encode(),
        "dictionary(timestamp)": PRIMITIVE["timestamp(ns,UTC)"].dictionary_encode(),
        "dictionary(decimal)": PRIMITIVE["decimal128(38,2)"].dictionary_encode(),
        "run_end_encoded": pa.RunEndEncodedArray.from_arrays(runs, array(["x", None])),
    }


NESTED = _nested()
EVERY = {**PRIMITIVE, **NESTED, **_encoded()}
