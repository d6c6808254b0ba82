"""Answers that are read from disk while they are sent: whole, an error in the envelope, or visibly torn."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from serving import MODEL, Served, await_final, connect, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARDS = 4
TEXTS = [f"{at} ".ljust(66_000, "x") for at in range(8 * SHARDS)]
LINES = b"".join(
    json.dumps({"request": {"content": {"parts": [{"text": text}]}}}).encode() + b"\n" for text in TEXTS
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all damages."""
    with serving(tmp_path_factory.mktemp("torn") / "data") as served:
        yield served


@pytest.fixture(scope="module")
def addresses(service: Served) -> dict[str, tuple[str, str]]:
    """Every streamed answer: its address and the batch that it reads."""
    with httpx2.Client(base_url=service.url, timeout=60) as web:
        entries = [{"request": {"content": {"parts": [{"text": text}]}}} for text in TEXTS]
        config: dict[str, Any] = {"requests": {"requests": entries}}
        inline = _submit(web, config)
        file = web.post("/upload/v1/files", content=LINES, headers={"Content-Type": "application/jsonl"})
        large = _submit(web, {"fileName": file.json()["file"]["name"]})
        done = await_final(web, large)
        assert "response" in await_final(web, inline)
        results = done["response"]["responsesFile"]
    return {
        "inline": (f"/v1/{inline}", inline),
        "arrow": (f"/v1/{large}/embeddings", large),
        "download": (f"/v1/{results}:download?alt=media", large),
    }


def _submit(web: httpx2.Client, config: dict[str, Any]) -> str:
    reply = web.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json={"batch": {"inputConfig": config}})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["name"])


class Damage:
    """One shard's file, damaged for as long as the block lasts."""

    def __init__(self, folder: Path, kind: str, shard: int, how: str) -> None:
        (self._path,) = folder.glob(f"{kind}-{shard:05}*.arrow")
        self._how = how

    def __enter__(self) -> None:
        self._content = self._path.read_bytes()
        self._path.unlink()
        if self._how == "flipped":
            self._path.write_bytes(self._content[:-9] + bytes([self._content[-9] ^ 4]) + self._content[-8:])
        elif self._how == "cut":
            self._path.write_bytes(self._content[: len(self._content) // 2])
        elif self._how == "unreadable just now":
            self._path.mkdir()

    def __exit__(self, *_: object) -> None:
        if self._path.is_dir():
            self._path.rmdir()
        self._path.write_bytes(self._content)


HOW = {"flipped": 500, "cut": 500, "missing": 500, "unreadable just now": 503}


@pytest.mark.parametrize(
    ("which", "kind", "how"),
    list(itertools.product(("inline", "arrow", "download"), ("payload", "result"), HOW)),
)
def test_what_cannot_be_read_at_the_beginning_is_an_error(
    service: Served, addresses: dict[str, tuple[str, str]], which: str, kind: str, how: str
) -> None:
    """In the envelope, with a status that says whether to come back; afterwards the answer is whole."""
    address, name = addresses[which]
    with httpx2.Client(base_url=service.url, timeout=60) as web:
        with Damage(service.data / name, kind, 0, how):
            reply = web.get(address)
        assert reply.status_code == HOW[how]
        assert reply.json()["error"]["status"] == ("UNAVAILABLE" if HOW[how] == 503 else "DATA_LOSS")
        assert ("retry-after" in reply.headers) == (HOW[how] == 503)
        assert web.get(address).status_code == 200


@pytest.mark.parametrize(
    ("which", "how"),
    list(itertools.product(("inline", "arrow", "download"), ("flipped", "unreadable just now"))),
)
def test_what_fails_midway_is_torn_and_named_in_the_log(
    service: Served, addresses: dict[str, tuple[str, str]], which: str, how: str
) -> None:
    """No client takes it for whole, and nobody takes it for a bug."""
    address, name = addresses[which]
    before = len(service.events())
    with Damage(service.data / name, "result", SHARDS - 1, how), httpx2.Client(base_url=service.url) as web:
        with web.stream("GET", address) as reply:
            assert reply.status_code == 200
            with pytest.raises(httpx2.RemoteProtocolError):
                reply.read()
        assert web.get("/healthz").status_code == 200
    said = {str(event["event"]): event for event in service.events()[before:]}
    assert said["answer torn"]["status"] == ("UNAVAILABLE" if HOW[how] == 503 else "DATA_LOSS")
    asked = [event for event in service.events()[before:] if event["event"] == "request"]
    # Those of /healthz, of this test and of the one before, are written after their answers.
    assert [event.get("torn") for event in asked if event["route"] != "/healthz"] == [True]
    assert not any("torn" in event for event in asked if event["route"] == "/healthz")
    assert not {"bug"} & said.keys()
    assert not any("ASGI" in event for event in said)


def test_without_chunks_a_torn_answer_is_a_reset_connection(
    service: Served, addresses: dict[str, tuple[str, str]]
) -> None:
    """To HTTP/1.0, as many a proxy speaks it, a plain end would be the end of the file."""
    address, name = addresses["download"]
    request = f"GET {address} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    with connect(service.url) as stream:
        stream.sendall(request)
        whole = sum(len(piece) for piece in iter(lambda: stream.recv(1 << 16), b""))
    assert whole > 1000
    with Damage(service.data / name, "result", SHARDS - 1, "missing"), connect(service.url) as stream:
        stream.sendall(request)
        with pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: stream.recv(1 << 16), b""))
