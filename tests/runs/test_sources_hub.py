"""Data sets on the Hub, read where they are from a stand-in on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embatch.errors import InvalidArgument
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = "hf://datasets/org/set"
_ABOUT = "/api/datasets/org/set"


def parquet(*texts: str) -> bytes:
    """Return a Parquet file."""
    out = BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), out)
    return out.getvalue()


def listed(files: dict[str, bytes], folder: str, *, deep: bool) -> list[dict[str, object]]:
    """Return what the Hub lists below a folder of a data set."""
    start = f"{folder}/" if folder else ""
    inside = {name: content for name, content in files.items() if name.startswith(start)}
    folders = {name[: at + 1] for name in inside for at in range(len(start), len(name)) if name[at] == "/"}
    found: list[dict[str, object]] = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha256(content).hexdigest()[:40]}
        for name, content in inside.items()
        if deep or "/" not in name[len(start) :]
    ]
    found += [
        {"type": "directory", "path": name[:-1], "size": 0, "oid": "0" * 40}
        for name in sorted(folders)
        if deep or "/" not in name[len(start) : -1]
    ]
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A Hub with one data set: its files, which a test may change."""
    from huggingface_hub import HfFileSystem, constants

    files = {
        "README.md": b"# Texts",
        "data/train-00000-of-00002.parquet": parquet("a", "b"),
        "data/train-00001-of-00002.parquet": parquet("c"),
        "data/test-00000-of-00001.parquet": parquet("d"),
        "more/lines.jsonl": b'{"text":"line"}\n',
    }

    def answer(path: str, *, deep: bool) -> bytes | None:
        if path in {_ABOUT, f"{_ABOUT}/revision/main"}:
            return json.dumps({"id": "org/set", "sha": "c" * 40, "siblings": []}).encode()
        if path.startswith(f"{_ABOUT}/tree/main"):
            folder = path.removeprefix(f"{_ABOUT}/tree/main").strip("/")
            return json.dumps(listed(files, folder, deep=deep)).encode()
        return files.get(path.removeprefix("/datasets/org/set/resolve/main/"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
            pass

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            content = answer(unquote(asked.path), deep="recursive=true" in asked.query.lower())
            status, part = 404 if content is None else 200, content or b""
            begin, dash, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if dash and content is not None:
                status, part = 206, content[int(begin) : int(end) + 1]
            self.send_response(status)
            if content is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        # As HF_ENDPOINT sets them, which is read when the library is first imported.
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        HfFileSystem.clear_instance_cache()
        yield files
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("place", "texts"),
    [
        (f"{PLACE}/data/test-00000-of-00001.parquet", ["d"]),
        (f"{PLACE}/data/train-*", ["a", "b", "c"]),
        (f"{PLACE}/**/train-*.parquet", ["a", "b", "c"]),
        (f"{PLACE}/more", ["line"]),
    ],
)
def test_a_data_set_is_read_where_it_is(hub: dict[str, bytes], place: str, texts: list[str]) -> None:
    """A file, a glob and a folder of it, in their order."""
    source = open_source(place, None, None)
    assert [text for rows in source.blocks() for text in rows.texts] == texts
    assert source.rows in (len(texts), None)
    assert source.size == sum(len(hub[file.path.removeprefix("datasets/org/set/")]) for file in source.files)


def test_splits_on_the_hub_are_not_mixed(hub: dict[str, bytes]) -> None:
    """The glob that the refusal names can be given as it is."""
    with pytest.raises(InvalidArgument, match="splits test, train") as error:
        open_source(f"{PLACE}/data", None, None)
    (rows,) = open_source(str(error.value).split("'")[-2], None, None).blocks()
    assert rows.texts == ["d"]


def test_another_content_is_another_input(hub: dict[str, bytes]) -> None:
    """The Hub tells no time, but a digest: a file of the same size is told apart."""
    from huggingface_hub import HfFileSystem

    def seen() -> str:
        HfFileSystem.clear_instance_cache()  # as another process would find it
        return open_source(f"{PLACE}/more", None, None).fingerprint()

    first = seen()
    assert seen() == first
    hub["more/lines.jsonl"] = b'{"text":"LINE"}\n'
    assert seen() != first


@pytest.mark.parametrize(
    "place", ["hf://datasets/org/none/x.parquet", f"{PLACE}/none.parquet", "hf://datasets", "hf://"]
)
def test_what_is_not_on_the_hub_is_refused(hub: dict[str, bytes], place: str) -> None:
    """A data set, a file, or no address at all."""
    with pytest.raises(InvalidArgument) as error:
        open_source(place, None, None)
    assert error.value.field == "IN"


def test_a_hub_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trace of the library that tried."""
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    HfFileSystem.clear_instance_cache()
    with pytest.raises(InvalidArgument, match=r"org/set/x\.parquet cannot be looked at") as error:
        open_source(f"{PLACE}/x.parquet", None, None)
    assert error.value.field == "IN"
