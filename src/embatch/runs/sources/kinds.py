"""What a file is: by its ending what it shall be, by its first bytes what it is.

Formats of lines are UTF-8, or UTF-16 that says so with a byte-order mark. Whatever else a file turns out to
be is refused by name before any file is read: read as lines it would be rubbish, and embedded as such.
"""

from __future__ import annotations

import codecs
import io
import unicodedata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
FORMATS: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
"""Format by ending. Those of the first two have their own compression inside."""
ENDINGS: Final = f"{', '.join(sorted(FORMATS))}, those of lines also with .gz, .zst or .bz2 behind"
HEAD_BYTES: Final = 64 << 10
"""What is looked at of a file."""

_CONVERT: Final = "save it as UTF-8"
_SIGNATURES: Final = (
    (b"\x1f\x8b", "gzip", ".gz"),
    (b"\x28\xb5\x2f\xfd", "zstd", ".zst"),
    (b"BZh", "bz2", ".bz2"),
    (b"PAR1", "Parquet", ".parquet"),
    (b"ARROW1", "Arrow", ".arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", ".arrows"),
    (b"FEA1", "an old Feather file", "write it anew"),
    (b"PARE", "encrypted Parquet", "decrypt it"),
    (b"PK\x03\x04", "a zip archive, as a spreadsheet is", "unpack it, or save the sheet as CSV"),
    (b"PK\x05\x06", "an empty zip archive", "unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "save the sheet as CSV"),
    (b"\xfd7zXZ\x00", "xz", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "lz4", "unpack it"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy", "unpack it"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it"),
    (b"ORC", "ORC", "write it as Parquet"),
    (b"Obj\x01", "Avro", "write it as Parquet"),
    (b"\x89HDF\r\n\x1a\n", "HDF5", "write it as Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write it as Parquet"),
    (b"SQLite format 3\x00", "a SQLite database", "export the table as CSV"),
    (b"%PDF-", "PDF", "take its text out"),
    (b"\x00\x00\xfe\xff", "UTF-32", _CONVERT),
    (b"\xff\xfe\x00\x00", "UTF-32", _CONVERT),
    *(
        (b"\x80" + bytes([protocol]), "a Python pickle", "write it as JSONL or Parquet")
        for protocol in range(2, 6)
    ),
)
"""First bytes, what begins so, and the ending that it should have or what to do."""
_BZIP2: Final = (b"1AY&", b"\x17rE8")
"""How the first block of bzip2 begins, and the end of what is compressed from nothing."""
_MARKS: Final = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BLANK: Final = b" \t\r\n"
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_JSON: Final = "make it one object a line, as `jq -c '.[]'` does"


def ending(path: str) -> str:
    """Return what tells the format of a file, without a compression."""
    return PurePosixPath(path.removesuffix(compression_ending(path))).suffix.lower()


def compression_ending(path: str) -> str:
    """Return the ending that tells its compression, as it is written; empty where none does."""
    last = PurePosixPath(path).suffix.lower()
    return path[len(path) - len(last) :] if last in COMPRESSIONS else ""


def check(name: str, raw: bytes, plain: bytes) -> str | None:
    """Return the encoding of a file of lines that is not UTF-8: UTF-16, by its mark; else `None`.

    Args:
        name: of the file, with its endings.
        raw: its first `HEAD_BYTES`, or all that there are.
        plain: the same decompressed.

    Raises:
        InvalidArgument: it is not what its endings say. It says what it is, and what to do.
    """
    form, packed = FORMATS[ending(name)], compression_ending(name)
    if not raw:
        _refuse_empty(name, form, packed)
        return None
    if packed:
        found = _signature(raw)
        if found is None or found[1] != packed.lower():
            what, _ = found or ("not compressed", "")
            raise InvalidArgument(
                f"{name} is {what}, not {COMPRESSIONS[packed.lower()]}: give it the ending of what it is",
                field="IN",
            )
    found = _signature(plain)
    if form in ("parquet", "arrow"):
        if form == "arrow" and found is None:  # the oldest streams begin with a length
            return None
        wanted = ("Parquet",) if form == "parquet" else ("Arrow", "an Arrow stream")
        if found is None or found[0] not in wanted:
            what, remedy = found or (_text(plain) or ("text", "give it the ending of what it is"))
            raise InvalidArgument(f"{name} is {what}, not {wanted[0]}: {_do(name, remedy)}", field="IN")
        return None
    if found is None and (mark := _MARKS.get(plain[:2])):
        return mark
    found = found or _text(plain) or (_json(plain) if form == "jsonl" else None)
    if found is not None:
        what, remedy = found
        raise InvalidArgument(f"{name} is {what}: {_do(name, remedy)}", field="IN")
    return None


def _refuse_empty(name: str, form: str, packed: str) -> None:
    what = COMPRESSIONS[packed.lower()] if packed else {"parquet": "Parquet", "arrow": "Arrow"}.get(form)
    if what is not None:  # one without rows has a head and a foot
        raise InvalidArgument(
            f"{name} is empty (0 bytes), and a file of {what} never is: write it again, or remove it",
            field="IN",
        )


def _do(name: str, remedy: str) -> str:
    if not remedy.startswith("."):
        return remedy
    if remedy in COMPRESSIONS:
        return f"name it {PurePosixPath(name).name}{remedy}"
    return f"give it the ending {remedy}"


def _signature(head: bytes) -> tuple[str, str] | None:
    for begin, what, remedy in _SIGNATURES:
        if head.startswith(begin) and (begin != b"BZh" or head[4:8] in _BZIP2 or len(head) < 8):
            return what, remedy
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # a frame to be skipped is the first, as of pzstd
        return "zstd", ".zst"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    return None


def _text(head: bytes) -> tuple[str, str] | None:
    """Return what bytes without a mark are that are no UTF-8 text; `None` where they are, or nearly."""
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls < 2 or controls < len(head) // 32:
        return None
    sound = _nearly(head)
    for order in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        if _likely(head, order, sound=sound):
            return f"{order[:6].upper()} without a byte-order mark", _CONVERT
    return None if sound else ("binary data, not text", "convert it")


def _nearly(head: bytes) -> bool:
    """Return whether bytes are UTF-8 but for a few: a bad line or two fail alone."""
    return head.decode(errors="replace").count("\ufffd") <= len(head) // 64


def _likely(head: bytes, order: str, *, sound: bool) -> bool:
    """Return whether bytes are text in an encoding of whole units: all letters known, some of them ASCII.

    Args:
        head: the bytes.
        order: the encoding.
        sound: whether they are nearly UTF-8 as well; then as many zeros have to be where this one has them.
    """
    try:
        text = codecs.getincrementaldecoder(order)().decode(head)
    except UnicodeDecodeError:
        return False
    odd = sum(unicodedata.category(one) in ("Cc", "Cn", "Co", "Cs") and not one.isspace() for one in text)
    plain = sum(" " <= one <= "~" or one.isspace() for one in text)
    if not text or odd > len(text) // 64:
        return False
    return plain >= max(1, len(text) // (10 if sound else 64))


def _json(head: bytes) -> tuple[str, str] | None:
    """Return that it is one JSON array, where it is: a list that is a line among others fails alone."""
    content = head.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)
    if not content.startswith(b"["):
        return None
    line, _, rest = content.partition(b"\n")
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        whole = content[1:].lstrip(_BLANK).startswith((b"{", b'"')) or not content[1:].strip(_BLANK)
    else:
        whole = not rest.strip(_BLANK)
    return ("one JSON array, not JSONL", _JSON) if whole else None


class Transcoded(io.RawIOBase):
    """A stream of UTF-16 read as UTF-8: what is no whole character is no UTF-8 either, and fails its line."""

    def __init__(self, stored: Any, encoding: str) -> None:
        super().__init__()
        self._stored = stored
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._left = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read as much as there is at once; 0 at the end."""
        room = memoryview(buffer).cast("B")
        while not self._left:
            content = self._stored.read(len(room))
            if not content:
                cut, _ = self._decoder.getstate()
                self._decoder.reset()
                self._left = b"\xff" if cut else b""
                break
            self._left = self._decoder.decode(content).encode(errors="surrogatepass")
        count = min(len(room), len(self._left))
        room[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        """Close the stream too."""
        self._stored.close()
        super().close()
