"""Files on the wire, rows F01 to F11: Google's own client, unmodified, and what it never sends."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sqlite3
import warnings
from base64 import b64decode
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from google import genai
from google.genai import errors as genai_errors
from serving import MODEL, Served, await_final, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSIONS = ("v1", "v1beta")
LINES = b"".join(
    json.dumps({"key": f"k{n}", "request": {"content": {"parts": [{"text": f"text {n}"}]}}}).encode() + b"\n"
    for n in range(5)
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for all rows."""
    with serving(tmp_path_factory.mktemp("files") / "data") as served:
        yield served


@pytest.fixture
def web(service: Served) -> Iterator[httpx2.Client]:
    """A plain HTTP client."""
    with httpx2.Client(base_url=service.url, timeout=30) as client:
        yield client


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version of the protocol that has a client."""
    return str(request.param)


@pytest.fixture
def google(service: Served, version: str) -> Iterator[genai.Client]:
    """Google's client, pointed at the service."""
    client = genai.Client(api_key="any", http_options={"base_url": service.url, "api_version": version})
    yield client
    client.close()


def stored(service: Served, name: str) -> bytes:
    """Return what the service keeps of an uploaded file: it never gives one out again."""
    with closing(sqlite3.connect(f"file:{service.data / 'embatch.db'}?mode=ro", uri=True)) as opened:
        ((path,),) = opened.execute("SELECT path FROM file WHERE id = ?", [name.removeprefix("files/")])
    return (service.data / str(path)).read_bytes()


def begin(web: httpx2.Client, description: Any = None, **headers: str) -> httpx2.Response:
    """Begin a resumable upload."""
    return web.post(
        "/upload/v1/files",
        json={"file": {"mimeType": "application/jsonl"} if description is None else description},
        headers={
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )


def send(
    web: httpx2.Client, address: str, content: bytes, *, command: str = "upload, finalize", offset: int = 0
) -> httpx2.Response:
    """Send one step of an upload."""
    return web.post(
        address,
        content=content,
        headers={"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)},
    )


def fault(reply: httpx2.Response, status: int) -> dict[str, Any]:
    """Return the error of a reply, which must be Google's envelope."""
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert error["code"] == status
    assert error["message"]
    assert error["status"]
    return error


def test_f01_upload_from_every_source(
    google: genai.Client, service: Served, tmp_path: Path, version: str
) -> None:
    """A path, a Path, a BytesIO and an open file become the same File."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(LINES)
    with path.open("rb") as opened:
        for source in (str(path), path, io.BytesIO(LINES), opened):
            file = google.files.upload(
                file=source, config={"mime_type": "application/jsonl", "display_name": "Lines"}
            )
            assert file.name is not None
            assert file.mime_type == "application/jsonl"
            assert file.display_name == "Lines"
            assert file.size_bytes == len(LINES)
            assert file.state is not None
            assert file.state.value == "ACTIVE"
            assert file.source is not None
            assert file.source.value == "UPLOADED"
            assert file.uri == f"{service.url}/{version}/{file.name}"
            assert file.create_time is not None
            assert file.expiration_time is not None
            assert file.expiration_time > file.create_time
            assert b64decode(str(file.sha256_hash)).decode() == hashlib.sha256(LINES).hexdigest()
            assert stored(service, file.name) == LINES


def test_f02_seventeen_megabytes_come_in_three_chunks(
    google: genai.Client, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunks begin at 0, 8 MiB and 16 MiB, and every byte arrives."""
    content = random.Random(2).randbytes(17 << 20)
    offsets: list[int] = []
    inner = httpx2.Client.request

    def watched(self: httpx2.Client, *args: Any, **kwargs: Any) -> httpx2.Response:
        offset = (kwargs.get("headers") or {}).get("X-Goog-Upload-Offset")
        if offset is not None:
            offsets.append(int(offset))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(httpx2.Client, "request", watched)
    file = google.files.upload(file=io.BytesIO(content), config={"mime_type": "application/jsonl"})
    assert offsets == [0, 8 << 20, 16 << 20]
    assert file.name is not None
    assert stored(service, file.name) == content


def test_f03_an_empty_file(google: genai.Client, service: Served) -> None:
    """Zero bytes are finalized like any other number."""
    file = google.files.upload(file=io.BytesIO(b""), config={"mime_type": "text/plain"})
    assert file.name is not None
    assert file.size_bytes == 0
    assert stored(service, file.name) == b""


def test_f04_the_address_of_an_upload_is_its_credential(web: httpx2.Client) -> None:
    """No key is needed with it, and a guessed one is refused."""
    address = begin(web).headers["x-goog-upload-url"]
    token = httpx2.URL(address).params["upload_id"]
    assert len(token) >= 32  # 128 bits at least, in any usual spelling
    guessed = address.replace(token, token[:-1] + ("a" if token[-1] != "a" else "b"))
    reply = send(web, guessed, LINES)
    fault(reply, 404)
    assert reply.headers["x-goog-upload-status"]
    assert send(web, address, LINES).status_code == 200
    for bad in ("", "../../etc/passwd", "a" * 10_000, "%00"):
        assert send(web, f"/upload/v1/files?upload_id={bad}", LINES).status_code in (404, 431)


def test_f05_wrong_offset_and_too_many_bytes(web: httpx2.Client) -> None:
    """Each is refused with the header that stops Google's client, and the upload goes on where it was."""
    address = begin(web, X_Goog_Upload_Header_Content_Length=str(len(LINES))).headers["x-goog-upload-url"]
    assert send(web, address, LINES[:50], command="upload").headers["x-goog-upload-status"] == "active"
    cases = ((0, LINES[:10], 400), (51, b"x", 400), (10**15, b"x", 400), (50, LINES[50:] + b"more", 413))
    for offset, content, status in cases:
        reply = send(web, address, content, offset=offset)
        fault(reply, status)
        assert reply.headers["x-goog-upload-status"] == "refused"
    query = send(web, address, b"", command="query")
    assert query.headers["x-goog-upload-status"] == "active"
    assert query.headers["x-goog-upload-size-received"] == "50"
    early = send(web, address, b"", command="finalize", offset=50)
    fault(early, 400)
    done = send(web, address, LINES[50:], offset=50)
    assert done.headers["x-goog-upload-status"] == "final"
    assert done.json()["file"]["sizeBytes"] == str(len(LINES))


def test_f05_google_clients_error_comes_at_once(
    google: genai.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused chunk raises in Google's client instead of being sent again for seven seconds."""
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("the client retries"))
    inner = httpx2.Client.request

    def shifted(self: httpx2.Client, *args: Any, **kwargs: Any) -> httpx2.Response:
        headers = kwargs.get("headers") or {}
        if "X-Goog-Upload-Offset" in headers:
            headers["X-Goog-Upload-Offset"] = "7"
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(httpx2.Client, "request", shifted)
    with pytest.raises(genai_errors.ClientError):
        google.files.upload(file=io.BytesIO(LINES), config={"mime_type": "application/jsonl"})


def test_f06_the_address_is_the_one_the_client_used(web: httpx2.Client) -> None:
    """Behind a proxy it has the outer scheme, host and path."""
    outer = begin(
        web, X_Forwarded_Host="embed.example.org", X_Forwarded_Proto="https", X_Forwarded_Prefix="/proxy"
    )
    assert outer.headers["x-goog-upload-url"].startswith(
        "https://embed.example.org/proxy/upload/v1/files?upload_id="
    )
    direct = begin(web).headers["x-goog-upload-url"]
    assert direct.startswith(f"{web.base_url}".rstrip("/") + "/upload/v1/files?upload_id=")
    bent = begin(web, X_Forwarded_Host="evil host/x?", X_Forwarded_Proto="javascript")
    assert bent.headers["x-goog-upload-url"].startswith(f"{web.base_url}".rstrip("/"))


def test_f07_a_mime_type_nobody_reads(google: genai.Client) -> None:
    """The message is the one Google gives."""
    with pytest.raises(genai_errors.ClientError, match="Unsupported MIME") as refused:
        google.files.upload(file=io.BytesIO(LINES), config={"mime_type": "bad/mime_type"})
    assert refused.value.code == 400


def test_f08_names(google: genai.Client, version: str) -> None:
    """A name of one's own is kept, once; 41 characters are too many."""
    mine = f"my-in-{version}"

    def upload(name: str) -> str | None:
        config = genai.types.UploadFileConfig(mime_type="application/jsonl", name=name)
        return google.files.upload(file=io.BytesIO(LINES), config=config).name

    assert upload(mine) == f"files/{mine}"
    with pytest.raises(genai_errors.ClientError) as taken:
        upload(mine)
    assert taken.value.code == 409
    for bad in ("a" * 41, "-a", "a-", "A", "a/b", "a..b", "batch-mine"):
        with pytest.raises(genai_errors.ClientError) as refused:
            upload(f"files/{bad}")
        assert refused.value.code == 400
    assert upload("a" * 34 + version)


def test_f09_get_list_delete(google: genai.Client, web: httpx2.Client, version: str) -> None:
    """Pages hold each file once, newest first; a deleted file is as one that never was."""
    names = [
        google.files.upload(file=io.BytesIO(LINES), config={"mime_type": "text/plain"}).name for _ in range(5)
    ]
    listed = [file.name for file in google.files.list(config={"page_size": 2})]
    assert len(listed) == len(set(listed))
    assert listed[:5] == names[::-1]
    page = web.get(f"/{version}/files", params={"pageSize": 2}).json()
    assert [file["name"] for file in page["files"]] == listed[:2]
    assert page["nextPageToken"]
    assert len(web.get(f"/{version}/files", params={"pageSize": 10**9}).json()["files"]) <= 100
    fault(web.get(f"/{version}/files", params={"pageSize": "-1"}), 400)
    fault(web.get(f"/{version}/files", params={"pageToken": "forged"}), 400)
    name = str(names[0])
    assert google.files.get(name=name).name == name
    google.files.delete(name=name)
    with pytest.raises(genai_errors.ClientError) as gone:
        google.files.get(name=name)
    assert gone.value.code == 403
    assert gone.value.status == "PERMISSION_DENIED"
    fault(web.delete(f"/{version}/{name}"), 403)


def finished_file_batch(google: genai.Client, web: httpx2.Client, version: str) -> dict[str, Any]:
    """Upload, submit and await one batch; return its operation's metadata."""
    file = google.files.upload(file=io.BytesIO(LINES), config={"mime_type": "application/jsonl"})
    with warnings.catch_warnings(action="ignore"):  # "experimental"
        job = google.batches.create_embeddings(model=MODEL, src={"file_name": file.name})
    operation = await_final(web, str(job.name), version=version)
    assert operation["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    return dict(operation["metadata"])


def test_f10_and_f11_results_are_a_file(google: genai.Client, web: httpx2.Client, version: str) -> None:
    """They download in both forms of the address, as Google's client and as curl write it."""
    metadata = finished_file_batch(google, web, version)
    name = metadata["output"]["responsesFile"]
    content = google.files.download(file=name)
    rows = [json.loads(line) for line in content.splitlines()]
    assert [row["key"] for row in rows] == [f"k{n}" for n in range(5)]
    assert all(row["response"]["embedding"]["values"] for row in rows)
    assert web.get(f"/download/{version}/{name}:download", params={"alt": "media"}).content == content

    about = google.files.get(name=name)
    assert about.source is not None
    assert about.source.value == "GENERATED"
    assert google.files.download(file=about) == content
    fault(web.get(f"/{version}/{metadata['inputConfig']['fileName']}:download"), 403)


def test_raw_and_multipart_uploads(web: httpx2.Client, service: Served) -> None:
    """A file in one request, bare or with its description, as curl users send it."""
    raw = web.post(
        "/upload/v1beta/files",
        content=LINES,
        headers={"X-Goog-Upload-Protocol": "raw", "Content-Type": "application/jsonl"},
    ).json()["file"]
    body = (
        b'--b\r\nContent-Type: application/json\r\n\r\n{"file":{"display_name":"D"}}\r\n'
        b"--b\r\nContent-Type: application/jsonl\r\n\r\n" + LINES + b"\r\n--b--\r\n"
    )
    both = web.post(
        "/upload/v1beta/files?uploadType=multipart",
        content=body,
        headers={"Content-Type": "multipart/related; boundary=b"},
    ).json()["file"]
    assert both["displayName"] == "D"
    for file in (raw, both):
        assert file["sizeBytes"] == str(len(LINES))
        assert stored(service, file["name"]) == LINES


def test_an_upload_that_breaks_off_leaves_nothing_in_one_request_and_goes_on_in_a_resumable_one(
    web: httpx2.Client, service: Served
) -> None:
    """What arrived before a connection broke counts, for those who can say where they stopped."""

    def breaking() -> Iterator[bytes]:
        yield LINES[:100]
        raise ConnectionAbortedError

    def uploads() -> set[str]:
        return {path.name for path in (service.data / "uploads").iterdir()}

    before = uploads()
    with pytest.raises(ConnectionAbortedError):
        web.post("/upload/v1/files", content=breaking(), headers={"Content-Type": "application/jsonl"})
    address = begin(web).headers["x-goog-upload-url"]
    headers = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}
    with pytest.raises(ConnectionAbortedError):
        web.post(address, content=breaking(), headers=headers)
    received = int(send(web, address, b"", command="query").headers["x-goog-upload-size-received"])
    assert received in (0, 100)
    done = send(web, address, LINES[received:], offset=received).json()["file"]
    assert stored(service, done["name"]) == LINES
    assert uploads() == before


def test_every_step_of_an_upload_can_be_asked_for_again(web: httpx2.Client, service: Served) -> None:
    """A lost answer changes nothing: the same chunk, the same end, and the same cancel say the same again."""
    address = begin(web, X_Goog_Upload_Header_Content_Length=str(len(LINES))).headers["x-goog-upload-url"]
    for _ in range(2):
        reply = send(web, address, LINES[:50], command="upload")
        assert (reply.status_code, reply.headers["x-goog-upload-size-received"]) == (200, "50")
    overlapping = send(web, address, LINES[40:60], command="upload", offset=40)
    assert overlapping.headers["x-goog-upload-size-received"] == "60"
    fault(send(web, address, b"other" + LINES[45:70], command="upload", offset=40), 400)
    made = send(web, address, LINES[60:], offset=60)
    steps = (("upload, finalize", LINES[60:], 60), ("finalize", b"", 0), ("upload, finalize", LINES, 0))
    for command, content, offset in steps:
        reply = send(web, address, content, command=command, offset=offset)
        assert (reply.status_code, reply.json()) == (200, made.json())
        assert reply.headers["x-goog-upload-status"] == "final"
    for content, offset in ((b"other", 0), (LINES, 1), (b"", len(LINES) + 1)):
        reply = send(web, address, content, offset=offset)
        fault(reply, 404)
        assert reply.headers["x-goog-upload-status"] == "cancelled"
    name = made.json()["file"]["name"]
    assert stored(service, name) == LINES
    assert web.delete(f"/v1/{name}").status_code == 200
    fault(send(web, address, b"", command="finalize"), 404)
    dropped = begin(web).headers["x-goog-upload-url"]
    for _ in range(2):
        assert send(web, dropped, b"", command="cancel").headers["x-goog-upload-status"] == "cancelled"


def test_the_last_answer_is_given_again(web: httpx2.Client) -> None:
    """Whoever lost it asks how far the upload is, and hears the file; of one that is gone, nothing."""
    address = begin(web).headers["x-goog-upload-url"]
    made = send(web, address, LINES).json()
    again = send(web, address, b"", command="query")
    assert (again.headers["x-goog-upload-status"], again.json()) == ("final", made)
    assert web.delete(f"/v1/{made['file']['name']}").status_code == 200
    fault(send(web, address, b"", command="query"), 404)


def test_a_cancelled_upload_is_gone(web: httpx2.Client, service: Served) -> None:
    """Its bytes too."""
    address = begin(web).headers["x-goog-upload-url"]
    send(web, address, LINES, command="upload")
    assert send(web, address, b"", command="cancel").headers["x-goog-upload-status"] == "cancelled"
    fault(send(web, address, b"", command="query"), 404)
    token = httpx2.URL(address).params["upload_id"]
    assert not (service.data / "uploads" / token).exists()


def test_an_upload_that_is_finished_is_not_cancelled_any_more(web: httpx2.Client) -> None:
    """The answer says so, and which file there is; one that was deleted since is as good as cancelled."""
    address = begin(web).headers["x-goog-upload-url"]
    made = send(web, address, LINES, command="upload, finalize").json()["file"]
    for _ in range(2):
        answer = send(web, address, b"", command="cancel")
        assert (answer.status_code, answer.headers["x-goog-upload-status"]) == (200, "final")
        assert answer.json()["file"]["name"] == made["name"]
    assert web.get(f"/v1/{made['name']}").status_code == 200
    assert web.delete(f"/v1/{made['name']}").status_code == 200
    assert send(web, address, b"", command="cancel").headers["x-goog-upload-status"] == "cancelled"


@pytest.mark.parametrize(
    ("description", "field"),
    [
        ({"mimeType": "text/plain", "colour": "red"}, "file.colour"),
        ({"mimeType": "text/plain", "displayName": "x" * 513}, "file.displayName"),
        ({"mimeType": "text/plain", "displayName": "a\u0000b"}, "file.displayName"),
        ({"mimeType": "text/plain", "displayName": 7}, "file.displayName"),
        ({"mimeType": "text/plain", "sizeBytes": "many"}, "file.sizeBytes"),
        ({"mimeType": "text/plain", "sizeBytes": True}, "file.sizeBytes"),
        ({"mimeType": 7}, "file.mimeType"),
        ([], "file"),
    ],
)
def test_a_description_that_cannot_be(web: httpx2.Client, description: Any, field: str) -> None:
    """The field at fault is named."""
    error = fault(begin(web, description), 400)
    assert error["details"][0]["fieldViolations"][0]["field"] == field


def test_a_file_over_the_limit_is_refused_before_it_is_sent(web: httpx2.Client) -> None:
    """By its announced size."""
    fault(begin(web, X_Goog_Upload_Header_Content_Length=str((2 << 30) + 1)), 413)


def test_a_hostile_file_name_is_only_a_name(web: httpx2.Client, service: Served) -> None:
    """Files lie under names of our own; a display name is kept as it came."""
    file = web.post(
        "/upload/v1/files",
        content=LINES,
        headers={"Content-Type": "text/plain", "X-Goog-Upload-File-Name": "../../etc/passwd"},
    ).json()["file"]
    assert file["displayName"] == "../../etc/passwd"
    assert stored(service, file["name"]) == LINES
