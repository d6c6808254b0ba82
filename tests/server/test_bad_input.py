"""Bad input, over a raw socket: each gets its status and says why, none a 5xx, and the service works on.

One table: what is sent, the status, and a word of the answer (a reason, or the field at fault). The numbers
are those of the catalogue the service was designed against; rows about content (faults of one text among good
ones) answer 200 and fail that request alone, and are tested where rows are judged.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import httpx2
import pytest
from serving import MODEL, Served, await_final, connect, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBMIT = f"/v1/models/{MODEL}:asyncBatchEmbedContent"
EMBED = f"/v1/models/{MODEL}:embedContent"
RECEIVE_SECONDS = "5"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
ORIGIN = "Origin: https://page.example"
PLAIN = "Content-Type: text/plain"
UPLOAD = "/upload/v1/files"
LONG = b"{" + b" " * 70_000 + b"}"
UPDATE = "/v1/batches/x:updateEmbedContentBatch"


def call(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """Return a request; a body gets its length unless a header frames it, and the type of JSON."""
    lines = [f"{method} {target} HTTP/1.1"]
    names = {header.partition(":")[0].lower() for header in headers}
    if "host" not in names:
        lines.append("Host: localhost")
    if body and "content-type" not in names:
        lines.append("Content-Type: application/json")
    if body and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    lines += [header for header in headers if header != "content-type:"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(body: bytes | str, *headers: str, target: str = SUBMIT) -> bytes:
    """Return a submit."""
    return call("POST", target, *headers, body=body if isinstance(body, bytes) else body.encode())


def batch(requests: str = '[{"request":{"content":{"parts":[{"text":"a"}]}}}]', more: str = "") -> str:
    """Return the body of a submit with these requests, and more members of the batch."""
    return '{"batch":{"inputConfig":{"requests":{"requests":' + requests + "}}" + more + "}}"


def request(members: str) -> str:
    """Return the body of a submit whose one request has these members beside its text."""
    return batch('[{"request":{"content":{"parts":[{"text":"a"}]},' + members + "}}]")


def chunked(*chunks: bytes) -> bytes:
    """Return a submit in chunks as given."""
    return post(b"", JSON, CHUNKED) + b"".join(chunks)


GOOD = batch()
FETCH = batch('[{"request":{"content":{"parts":[{"fileData":{"fileUri":"http://127.0.0.1/"}}]}}}]')
HOOK = batch(more=',"webhookConfig":{"uris":["http://127.0.0.1/"]}')
PARQUET = call("POST", "/upload/v1/files", "Content-Type: application/vnd.apache.parquet", body=b"PAR1")
BIG = 21 << 20
TABLE: list[tuple[str, bytes, int, str | None]] = [
    ("1 empty body", call("POST", SUBMIT), 400, None),
    ("2 null", post("null"), 400, None),
    ("3 array", post("[]"), 400, None),
    ("4 truncated", post(GOOD[:-3]), 400, "MALFORMED_JSON"),
    ("5 trailing bytes", post(GOOD + "x"), 400, "MALFORMED_JSON"),
    ("6 byte order mark", post(b"\xef\xbb\xbf" + GOOD.encode()), 400, "BAD_ENCODING"),
    ("7 UTF-16", post(GOOD.encode("utf-16")), 400, "BAD_ENCODING"),
    ("8 invalid UTF-8", post(GOOD.encode().replace(b'"a"', b'"\xff"')), 400, "BAD_ENCODING"),
    ("11 NUL in display name", post(batch(more=',"displayName":"a\\u0000b"')), 400, "displayName"),
    ("12 NaN", post(request('"outputDimensionality":NaN')), 400, "MALFORMED_JSON"),
    ("13 Infinity", post(request('"outputDimensionality":Infinity')), 400, "MALFORMED_JSON"),
    ("14 1e400", post(request('"outputDimensionality":1e400')), 400, None),
    ("15 5000 digits", post(request('"outputDimensionality":' + "9" * 5000)), 400, None),
    ("16 1e20 for an int64", post(batch(more=',"priority":100000000000000000000')), 400, "priority"),
    ("17 depth", post('{"batch":' + "[" * 100_000 + "]" * 100_000 + "}"), 400, "TOO_DEEP"),
    ("18 duplicate names", post('{"batch":1,' + GOOD[1:]), 400, "DUPLICATE_KEY"),
    ("19 unknown field", post(GOOD[:-1] + ',"colour":1}'), 400, "colour"),
    ("20 unknown field in a request", post(request('"colour":1')), 400, "colour"),
    ("21 both spellings", post(batch(more=',"displayName":"a","display_name":"b"')), 400, "display"),
    ("22 no requests", post(batch("[]")), 400, "EMPTY_BATCH"),
    ("23 requests missing", post('{"batch":{"inputConfig":{"requests":{}}}}'), 400, "EMPTY_BATCH"),
    ("24 requests an object", post(batch("{}")), 400, "requests"),
    ("24 requests a string", post(batch('"a"')), 400, "requests"),
    ("31 dimensions 0", post(request('"outputDimensionality":0')), 400, "outputDimensionality"),
    ("32 dimensions -1", post(request('"outputDimensionality":-1')), 400, "outputDimensionality"),
    ("33 dimensions 4097", post(request('"outputDimensionality":4097')), 400, "outputDimensionality"),
    ("34 dimensions 768.5", post(request('"outputDimensionality":768.5')), 400, "outputDimensionality"),
    ("35 dimensions true", post(request('"outputDimensionality":true')), 400, "outputDimensionality"),
    ("38 unknown task type", post(request('"taskType":"DANCE"')), 400, "taskType"),
    ("41 unknown model", post(GOOD, target="/v1/models/nothing:asyncBatchEmbedContent"), 404, "--alias"),
    ("41 a path", post(GOOD, target="/v1/models/../../etc/passwd:asyncBatchEmbedContent"), 404, None),
    ("41 an address", post(GOOD, target="/v1/models/https://x.example/m:asyncBatchEmbedContent"), 404, None),
    ("42 priority a word", post(batch(more=',"priority":"high"')), 400, "priority"),
    ("42 priority 1.5", post(batch(more=',"priority":1.5')), 400, "priority"),
    ("42 priority beyond int64", post(batch(more=',"priority":"9223372036854775808"')), 400, "priority"),
    ("44 display name 10 kB", post(batch(more=f',"displayName":"{"x" * 10_000}"')), 400, "displayName"),
    ("44 display name a number", post(batch(more=',"displayName":7')), 400, "displayName"),
    ("51 too many inline", post(batch("[" + ",".join(["{}"] * 10_001) + "]")), 400, None),
    ("52 length over the limit", post(b"", f"Content-Length: {BIG}", JSON), 413, None),
    ("53 chunks over the limit", chunked(*[b"100000\r\n" + b" " * (1 << 20) + b"\r\n"] * 21), 413, None),
    ("54 length too short", post(GOOD, "Content-Length: 10"), 400, None),
    ("54 length too long", post(GOOD, f"Content-Length: {len(GOOD) + 10}"), 408, "TOO_SLOW"),
    ("54 length negative", post(GOOD, "Content-Length: -1"), 400, None),
    ("54 two lengths", post(GOOD, "Content-Length: 10", "Content-Length: 11"), 400, None),
    ("55 length and chunks", post(GOOD, "Content-Length: 9", CHUNKED), 400, "BAD_FRAMING"),
    ("56 chunk size no number", chunked(b"zz\r\n"), 400, None),
    ("56 chunks of a byte", chunked(b"1\r\n \r\n" * 100_000), 400, "TINY_CHUNKS"),
    ("57 no type", post(GOOD, "content-type:"), 415, "CONTENT_TYPE"),
    ("57 text/plain", post(GOOD, "Content-Type: text/plain"), 415, "CONTENT_TYPE"),
    ("58 charset", post(GOOD, "Content-Type: application/json; charset=latin-1"), 415, "CONTENT_TYPE"),
    ("59 gzip", post(b"\x1f\x8b", "Content-Encoding: gzip"), 415, "CONTENT_ENCODING"),
    (
        "60 multipart without boundary",
        call(
            "POST",
            "/upload/v1/files?uploadType=multipart",
            "Content-Type: multipart/related",
            body=b"--x\r\n\r\n",
        ),
        400,
        "boundary",
    ),
    (
        "60 multipart with a head of a megabyte",
        call(
            "POST",
            "/upload/v1/files?uploadType=multipart",
            "Content-Type: multipart/related; boundary=x",
            body=b"--x\r\nA: " + b"x" * (1 << 20) + b"\r\n\r\n{}\r\n--x--",
        ),
        400,
        None,
    ),
    (
        "60 multipart with 10,000 parts",
        call(
            "POST",
            "/upload/v1/files?uploadType=multipart",
            "Content-Type: multipart/related; boundary=x",
            body=b"--x\r\nContent-Type: text/plain\r\n\r\n{}\r\n" * 10_000 + b"--x--",
        ),
        400,
        None,
    ),
    ("65 a batch from no file", post('{"batch":{"inputConfig":{"fileName":"files/nothing"}}}'), 403, None),
    ("66 an upload that is no text", PARQUET, 400, "Unsupported MIME"),
    ("67 an address to fetch", post(FETCH), 200, None),
    ("67 a webhook", post(HOOK), 400, "webhookConfig"),
    ("68 a foreign batch", call("GET", "/v1/batches/0123456789abcdefghijklmnopqrstuvwxyz"), 404, None),
    ("68 a foreign file", call("GET", "/v1/files/foreign"), 403, None),
    ("69 encoded path", call("GET", "/v1/batches/..%2F"), 404, None),
    ("69 10 kB", call("GET", "/v1/batches/" + "a" * 10_000), 404, None),
    ("69 SQL", call("GET", "/v1/batches/'%20or%201=1--"), 404, None),
    ("69 SQL in a file", call("GET", "/v1/files/'%20or%201=1--"), 403, None),
    ("70 forged page token", call("GET", "/v1/batches?pageToken=forged"), 400, "pageToken"),
    ("70 page size -1", call("GET", "/v1/batches?pageSize=-1"), 400, "pageSize"),
    ("70 page size 1e9", call("GET", "/v1/batches?pageSize=1000000000"), 200, None),
    ("70 page size a word", call("GET", "/v1/batches?pageSize=many"), 400, "pageSize"),
    ("71 10,000 ranges", call("GET", "/v1/batches", "Range: bytes=" + ",".join(["0-1"] * 2000)), 200, None),
    ("72 a header of a megabyte", call("GET", "/v1/batches", "X-Long: " + "x" * (1 << 20)), 431, None),
    ("72 a thousand headers", call("GET", "/v1/batches", *[f"X-{n}: 1" for n in range(1000)]), 431, None),
    ("72 a header of 17 kB", call("GET", "/v1/batches", "X-Long: " + "x" * (17 << 10)), 431, None),
    ("73 host with a slash", call("GET", "/v1/batches", "Host: localhost/x"), 400, "BAD_HOST"),
    ("73 host with a question mark", call("GET", "/v1/batches", "Host: localhost?x"), 400, "BAD_HOST"),
    ("73 a foreign host", call("GET", "/v1/batches", "Host: rebound.example"), 400, "BAD_HOST"),
    ("73 no host", b"GET /v1/batches HTTP/1.1\r\n\r\n", 400, None),
    ("73 a foreign page submits", post(GOOD, ORIGIN, JSON), 403, "FOREIGN_ORIGIN"),
    ("73 a foreign page submits as text", post(GOOD, ORIGIN, PLAIN), 403, "FOREIGN_ORIGIN"),
    ("73 a foreign page uploads", call("POST", UPLOAD, ORIGIN, PLAIN, body=b"{}"), 403, "FOREIGN_ORIGIN"),
    ("73 a foreign page cancels", call("POST", "/v1/batches/nothing:cancel", ORIGIN), 403, "FOREIGN_ORIGIN"),
    ("73 a page of no origin uploads", call("POST", UPLOAD, "Origin: null", PLAIN), 403, "FOREIGN_ORIGIN"),
    ("74 two slashes", call("GET", "//v1/batches"), 404, None),
    ("74 dots", call("GET", "/v1/../v1/batches"), 404, None),
    ("74 encoded dots", call("GET", "/v1/%2e%2e/v1/batches"), 404, None),
    ("74 other case", call("GET", "/V1/Batches"), 404, None),
    ("74 trailing slash", call("GET", "/v1/batches/"), 404, None),
    ("75 half a head", b"GET /v1/batches HTTP/1.1\r\nHost: local", 408, "TOO_SLOW"),
    ("75 half a body", post(GOOD)[:-10], 408, "TOO_SLOW"),
    ("76 idempotency key of 10 kB", post(GOOD, "Idempotency-Key: " + "k" * 10_000), 400, "Idempotency-Key"),
    ("77 cancel of nothing", call("POST", "/v1/batches/nothing:cancel"), 404, None),
    ("77 delete of nothing", call("DELETE", "/v1/batches/nothing"), 404, None),
    ("78 wrong method", call("PUT", "/v1/batches"), 405, None),
    ("78 HEAD", call("HEAD", "/v1/batches"), 405, None),
    ("78 OPTIONS", call("OPTIONS", "/v1/batches", "Origin: http://x.example"), 405, None),
    ("78 WebSocket", call("GET", "/v1/batches", "Connection: Upgrade", "Upgrade: websocket"), 405, None),
    ("78 no such path", call("GET", "/nothing"), 404, None),
    ("an update of 70 kB", call("PATCH", UPDATE, JSON, body=LONG), 413, "BODY_TOO_LARGE"),
    ("a cancel of 70 kB", call("POST", "/v1/batches/x:cancel", JSON, body=LONG), 413, "BODY_TOO_LARGE"),
    ("a poll of 70 kB", call("GET", "/v1/batches/x", JSON, body=LONG), 413, "BODY_TOO_LARGE"),
    ("an end of a run of 70 kB", call("POST", "/v1/runs/x:publish", JSON, body=LONG), 413, "BODY_TOO_LARGE"),
    ("an encoded colon", post(LONG, target=EMBED.replace(":embed", "%3Aembed")), 400, "content"),
    ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, None),
    ("HTTP/2 without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, None),
    ("embed nothing", post("{}", target=EMBED), 400, "content"),
    ("embed an empty text", post('{"content":{"parts":[{"text":""}]}}', target=EMBED), 400, None),
    ("embed a number", post('{"content":{"parts":[{"text":7}]}}', target=EMBED), 400, "text"),
]  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service that meets the whole table, with a short deadline."""
    environ = {"EMBATCH_RECEIVE_SECONDS": RECEIVE_SECONDS}
    with serving(tmp_path_factory.mktemp("bad") / "data", environ=environ) as served:
        yield served


def answer(service: Served, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of their own; return status, headers and body of the first answer."""
    peer = h11.Connection(h11.CLIENT)
    method = sent.split(b" ", 1)[0]
    peer.send(
        h11.Request(method="HEAD" if method == b"HEAD" else "POST", target="/", headers=[("Host", "x")])
    )
    peer.send(h11.EndOfMessage())
    with connect(service.url) as stream:
        with contextlib.suppress(ConnectionError):  # refused while still sending: the answer is there
            stream.sendall(sent)
        status, headers, body = 0, {}, b""
        while True:
            event = peer.next_event()
            if event is h11.NEED_DATA:
                peer.receive_data(stream.recv(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode().lower(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return status, headers, body


@dataclass
class Answer:
    """What came back for a row, and how long it took."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


@pytest.fixture(scope="module")
def answers(service: Served) -> list[Answer]:
    """The answers to the whole table, row by row: in whatever order the tests come, all was sent before."""
    found = []
    for row in TABLE:
        began = time.monotonic()
        status, headers, body = answer(service, row[1])
        found.append(Answer(status, headers, body, time.monotonic() - began))
    return found


@pytest.mark.parametrize("at", range(len(TABLE)), ids=[row[0] for row in TABLE])
def test_bad_input(answers: list[Answer], at: int) -> None:
    """Each row gets its status, in Google's envelope, in time and without repeating the input."""
    _, sent, status, word = TABLE[at]
    found, headers, body = answers[at].status, answers[at].headers, answers[at].body
    assert found == status, body
    assert answers[at].seconds < float(RECEIVE_SECONDS) + 30  # half a minute for a machine that is busy
    assert not any(name.startswith("access-control-") for name in headers)
    if status == 405:
        assert headers["allow"]
    if sent.startswith(b"HEAD") or status == 200:
        return
    error = json.loads(body)["error"]
    assert error["code"] == status
    assert error["status"]
    assert error["message"]
    assert len(body) < 2000
    assert "Traceback" not in body.decode()
    if word is not None:
        assert word in body.decode()


def test_afterwards_the_service_is_as_before(service: Served, answers: list[Answer]) -> None:
    """Nothing refused was stored, no answer was a 5xx, no socket stays open, and a batch still completes."""
    accepted = sum("asyncBatch" in str(row[1][:200]) and row[2] == 200 for row in TABLE)
    with httpx2.Client(base_url=service.url, timeout=30) as web:
        assert len(web.get("/v1/batches").json().get("operations", [])) == accepted
        assert web.get("/v1/files").json().get("files", []) == []
        assert len(list((service.data / "batches").iterdir())) == accepted
        assert list((service.data / "uploads").iterdir()) == []
        texts = [{"request": {"content": {"parts": [{"text": f"canary {n}"}]}}} for n in range(50)]
        reply = web.post(SUBMIT, json={"batch": {"inputConfig": {"requests": {"requests": texts}}}})
        operation = await_final(web, reply.json()["name"])
    assert operation["metadata"]["batchStats"]["successfulRequestCount"] == "50"
    events = [event for event in service.events() if event["event"] == "request"]
    assert len(events) > 50
    assert [event for event in events if int(str(event["status"])) >= 500] == []
    assert [event for event in service.events() if event["level"] in ("error", "critical")] == []
    assert service.process is not None
    deadline = time.monotonic() + 60
    while open_connections(service.process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)  # a refused connection is closed a moment after its answer, and nothing tells us
    assert open_connections(service.process.pid) == 0
    slowest = max(one.seconds for one in answers if one.seconds < float(RECEIVE_SECONDS))
    print(  # noqa: T201  (the figures of the catalogue)
        f"\ncases {len(answers)}, 5xx 0, sockets left 0, slowest {1000 * slowest:.0f} ms"
    )


def open_connections(pid: int) -> int:
    """Count the TCP connections that a process still holds, its listening socket not among them."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(str(descriptor.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = "0A"
    return sum(row[9] in own and row[3] != listening for row in rows)
