"""A service with keys as a real process: who gets in, what it tells, and the file read again on SIGHUP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from serving import MODEL, Served, await_final, connect, short_folder

from embatch import Client, Unauthenticated
from embatch.api.auth import line_of, new_key
from embatch.errors import InvalidArgument
from embatch.server import ServeOptions, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINES = b"".join(
    json.dumps({"key": f"k{n}", "request": {"content": {"parts": [{"text": f"text {n}"}]}}}).encode() + b"\n"
    for n in range(5)
)
STRANGER = 12345
ROOT = os.geteuid() == 0


def write(path: Path, **keys: str) -> Path:
    """Write a file of keys by id, as its owner would: a new one in the place of the old."""
    fresh = path.with_name("fresh")
    fresh.write_text("".join(f"{line_of(key, name)[1]}\n" for name, key in keys.items()))
    fresh.chmod(0o600)
    return fresh.replace(path)


class Keyed(Served):
    """A service with a file of keys."""

    def __init__(self, data: Path, *flags: str) -> None:
        self.file = data.with_name("keys")
        super().__init__(data, "--api-keys", str(self.file), *flags)

    def hang_up(self, event: str) -> dict[str, object]:
        """Have the file read again; return the event of this name that tells how it went."""
        before = len(self.told(event))
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while len(told := self.told(event)) == before:
            assert time.monotonic() < deadline, f"it does not say {event}:\n{self.tail()}"
            time.sleep(0.02)  # a log gives no signal
        return told[-1]

    def told(self, event: str) -> list[dict[str, object]]:
        """Return the events of a name; the last line may not be whole yet."""
        lines = self.log.read_text().splitlines(keepends=True)
        said = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line for line in said if line["event"] == event]


@pytest.fixture(scope="module")
def key() -> str:
    """The key that counts."""
    return new_key()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, key: str) -> Iterator[Keyed]:
    """One service for all who ask, on an address that others can reach."""
    served = Keyed(tmp_path_factory.mktemp("keyed") / "data", "--host", "0.0.0.0")  # noqa: S104
    write(served.file, alice=key)
    try:
        served.start()
        served.url = served.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        yield served
    finally:
        served.kill()


@pytest.fixture
def web(service: Keyed, key: str) -> Iterator[httpx2.Client]:
    """A plain HTTP client with the key."""
    with httpx2.Client(base_url=service.url, timeout=60, headers={"x-goog-api-key": key}) as client:
        yield client


@pytest.mark.filterwarnings("ignore:.*experimental.*")  # Google's client, of its own method
@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_googles_client_works_with_its_key_and_with_no_other(
    service: Keyed, key: str, version: str, tmp_path: Path
) -> None:
    """Models, queries, uploads (whose chunks it sends without a key), batches and downloads."""
    options: Any = {"base_url": service.url, "api_version": version}
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(LINES)
    with genai.Client(api_key=key, http_options=options) as google:
        answer = google.models.embed_content(model=MODEL, contents=["a", "b"])
        assert len(answer.embeddings or ()) == 2
        file = google.files.upload(file=str(lines), config={"mime_type": "application/jsonl"})
        job = google.batches.create_embeddings(
            model=MODEL, src=types.EmbeddingsBatchJobSource(file_name=file.name)
        )
        assert job.name is not None
        with httpx2.Client(base_url=service.url, timeout=60, headers={"x-goog-api-key": key}) as web:
            await_final(web, job.name)
        done = google.batches.get(name=job.name)
        assert done.dest is not None
        assert done.dest.file_name is not None
        assert len(google.files.download(file=done.dest.file_name).splitlines()) == 5
    with genai.Client(api_key=new_key(), http_options=options) as google:
        for call in (
            lambda: google.models.embed_content(model=MODEL, contents=["a"]),
            lambda: google.files.upload(file=str(lines), config={"mime_type": "application/jsonl"}),
            google.batches.list,
        ):
            with pytest.raises(genai_errors.ClientError) as refused:
                call()
            assert (refused.value.code, refused.value.status) == (401, "UNAUTHENTICATED")


def test_our_client_shows_its_key_or_that_of_the_environment(
    service: Keyed, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By file too; without a key the error says where to put one, and is not asked again."""
    texts = [f"text {n}" for n in range(1200)]  # more than go inline
    with Client(service.url, api_key=key) as client:
        batch = client.async_batch_embed_contents(texts, display_name="Keyed")
        assert client.await_batch_completion(batch.name, poll_interval=0.1).done
        assert client.get_batch_embeddings(batch.name).to_numpy().shape[0] == 1200
    with Client(service.url) as client, pytest.raises(Unauthenticated, match="EMBATCH_API_KEY"):
        client.embed_content("a text")
    monkeypatch.setenv("EMBATCH_API_KEY", key)
    with Client(service.url) as client:
        client.embed_content("a text")
    with (
        Client(service.url, api_key=new_key()) as client,
        pytest.raises(Unauthenticated, match="copied whole"),
    ):
        client.embed_content("a text")


def test_the_command_line_without_a_key_leaves_with_its_own_code(service: Keyed) -> None:
    """4, not authorised, in one line."""
    done = subprocess.run(
        [sys.executable, "-m", "embatch", "list", "--to", service.url],
        env={name: value for name, value in os.environ.items() if name != "EMBATCH_API_KEY"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: this service asks for a key: ")
    assert done.stderr.count("\n") == 1


def test_a_stranger_is_refused_by_the_head_of_a_large_body(service: Keyed) -> None:
    """Neither the body nor an invitation to send it: the answer comes while there is only a head."""
    head = (
        f"POST /v1/models/{MODEL}:asyncBatchEmbedContent HTTP/1.1\r\nHost: embed.example.org\r\n"
        "Content-Type: application/json\r\nContent-Length: 20000000\r\nExpect: 100-continue\r\n\r\n"
    )
    with connect(service.url) as stream:
        stream.sendall(head.encode())
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert b"\r\nWWW-Authenticate: Bearer" in answer
    assert b'"status":"UNAUTHENTICATED"' in answer
    too_large = head.replace("20000000", "200000000000")
    with connect(service.url) as stream:
        stream.sendall(too_large.encode())
        assert stream.recv(12) == b"HTTP/1.1 401"  # what else is wrong is not for strangers


def test_an_upload_begins_with_a_key_and_goes_on_by_its_address(service: Keyed, web: httpx2.Client) -> None:
    """The address holds 256 random bits; a guessed one leads nowhere, and the file wants a key again."""
    start = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
    description = {"file": {"mimeType": "application/jsonl"}}
    step = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
    with httpx2.Client(base_url=service.url, timeout=60) as stranger:
        assert stranger.post("/upload/v1/files", json=description, headers=start).status_code == 401
        assert (
            stranger.post(
                "/upload/v1/files", content=LINES, headers={"Content-Type": "text/plain"}
            ).status_code
            == 401
        )
        address = web.post("/upload/v1/files", json=description, headers=start).headers["X-Goog-Upload-URL"]
        token = httpx2.URL(address).params["upload_id"]
        assert len(token) == 43
        guessed = address.replace(token, token[:-1] + ("A" if token[-1] != "A" else "B"))
        assert stranger.post(guessed, content=LINES, headers=step).status_code == 404
        assert (
            stranger.post(address.replace(token, token[:-1]), content=LINES, headers=step).status_code == 401
        )
        done = stranger.post(address, content=LINES, headers=step)
        assert done.status_code == 200, done.text
        name = done.json()["file"]["name"]
        assert stranger.get(f"/v1/{name}").status_code == 401
        assert web.get(f"/v1/{name}").status_code == 200


def test_the_log_names_the_id_of_a_key_and_never_a_key(service: Keyed, key: str, web: httpx2.Client) -> None:
    """Neither a right nor a wrong one, wherever it was sent; start-up says that keys travel in clear."""
    wrong = new_key()
    assert web.get("/v1/batches").status_code == 200
    httpx2.get(f"{service.url}/v1/batches", headers={"x-goog-api-key": wrong})
    in_address = httpx2.get(f"{service.url}/v1/batches?key={key}").json()["error"]
    assert in_address["details"][0]["reason"] == "KEY_IN_ADDRESS"
    httpx2.get(f"{service.url}/healthz", headers={"authorization": f"Bearer {wrong}"})
    requests = [line for line in service.told("request") if line["route"] == "/v1/batches"]
    assert requests[-1]["key"] == "alice"
    assert all("key" not in line for line in service.told("request") if line["route"] == "/healthz")
    assert {"NO_KEY", "WRONG_KEY", "KEY_IN_ADDRESS"} >= {line["reason"] for line in service.told("refused")}
    said = service.log.read_text()
    assert key not in said
    assert wrong not in said
    (clear,) = [line for line in service.events() if "in clear" in str(line["event"])]
    assert clear["level"] == "warning"


def test_a_hang_up_reads_the_file_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    """A new key counts, a removed one no more, what is wrong is logged by its line; nobody is dropped."""
    first, second = new_key(), new_key()
    service = Keyed(tmp_path / "data")
    write(service.file, alice=first)
    try:
        service.start()
        with httpx2.Client(base_url=service.url, timeout=60) as web:

            def status(key: str) -> int:
                return web.get("/v1/batches", headers={"x-goog-api-key": key}).status_code

            assert (status(first), status(second)) == (200, 401)
            # A proxy with TLS passes on by which name it was called; a page in a browser has no key.
            proxied = {"x-goog-api-key": first, "host": "embed.example.org"}
            assert web.get("/v1/batches", headers=proxied).status_code == 200
            write(service.file, alice=first, bob=second)
            assert service.hang_up("keys read")["keys"] == 2
            assert (status(first), status(second)) == (200, 200)
            breaks: list[tuple[Callable[[], object], str]] = [
                (lambda: service.file.write_text(f"bob {second}\n"), "line 1: a key itself stands here"),
                (lambda: service.file.write_text(""), "holds no key"),
                (lambda: service.file.chmod(0o640), "chmod 600"),
                (service.file.unlink, "cannot be read: No such file"),
            ]
            for break_it, why in breaks:
                break_it()
                told = service.hang_up("keys not read")
                assert told["level"] == "error"
                assert why in str(told["reason"])
                assert (status(first), status(second)) == (200, 200)
            write(service.file, bob=second)
            service.hang_up("keys read")
            assert (status(first), status(second)) == (401, 200)
        assert service.stop() == 0
        assert first not in service.log.read_text()
        assert second not in service.log.read_text()
        assert [line["signal"] for line in service.told("leaving")] == [signal.SIGTERM]
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()


class Lasting(Keyed):
    """A service whose starter has hang-ups ignored."""

    @property
    def command(self) -> list[str]:
        """The command line of the service."""
        return ["nohup", *super().command]


def test_under_nohup_a_hang_up_reads_the_file_too(tmp_path: Path) -> None:
    """With keys it is no end that could be ignored, and a socket asks for keys as an address does."""
    with short_folder() as folder:
        service = Lasting(tmp_path / "data", "--socket", str(folder / "s"))
        write(service.file, alice=new_key())
        try:
            service.start()
            assert service.hang_up("keys read")["keys"] == 1
            transport = httpx2.HTTPTransport(uds=str(folder / "s"))
            with httpx2.Client(transport=transport, base_url="http://embatch", timeout=60) as web:
                assert web.get("/v1/batches").status_code == 401
            assert not any("in clear" in str(line["event"]) for line in service.events())
            assert service.stop() == 0
        finally:
            if service.process is not None and service.process.poll() is None:
                service.kill()


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"No such file or directory \(embatch keys new >> .*keys makes it\)"),
    "empty": (lambda path: path.write_text(""), "holds no key: add one by embatch keys new"),
    "malformed": (lambda path: path.write_text("# mine\nsecret words here\n"), "line 2: a line is an id"),
    "a key in it": (lambda path: path.write_text(f"alice {new_key()}\n"), "line 1: a key itself stands here"),
    "doubled id": (
        lambda path: path.write_text(path.read_text() + line_of(new_key(), "alice")[1]),
        "line 2: the id",
    ),
    "doubled hash": (
        lambda path: path.write_text(path.read_text() + path.read_text().replace("alice", "bob")),
        "line 2: the SHA",
    ),
    "link": (_link, "is a link"),
    "hard link": (lambda path: os.link(path, path.with_name("other")), "hard link"),
    "folder": (_folder, "is no file"),
    "group": (lambda path: path.chmod(0o640), r"open to others \(mode 0640\): chmod 600 "),
    "everybody": (lambda path: path.chmod(0o604), r"mode 0604\): chmod 600 "),
    "large": (lambda path: path.write_bytes(b"\n" * 300_000), "more than 262,144 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_keeps_the_service_from_starting(tmp_path: Path, fault: str) -> None:
    """In one line with the remedy, before anything is made; nothing that stands in the file is shown."""
    file = write(tmp_path / "keys", alice=new_key())
    break_it, why = FAULTS[fault]
    break_it(file)
    with pytest.raises(InvalidArgument, match=why) as refused:
        serve(ServeOptions(data=tmp_path / "data", port=0, api_keys=file))
    assert refused.value.field == "--api-keys"
    assert "\n" not in refused.value.message
    assert not any(word in refused.value.message for word in ("secret", "alice", "embatch-"))
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_somebody_elses_file_keeps_the_service_from_starting(tmp_path: Path) -> None:
    """Its owner could add a key."""
    file = write(tmp_path / "keys", alice=new_key())
    os.chown(file, STRANGER, STRANGER)
    with pytest.raises(InvalidArgument, match="belongs to user 12345 and not to "):
        serve(ServeOptions(data=tmp_path / "data", port=0, api_keys=file))


def test_a_refused_start_is_told_by_the_command(tmp_path: Path) -> None:
    """Exit code 2, one line."""
    service = Keyed(tmp_path / "data")
    write(service.file, alice=new_key()).chmod(0o644)
    assert service.launch().wait(120) == 2
    assert service.tail() == (
        f"error: the file of keys {service.file} is open to others (mode 0644): "
        f"chmod 600 {service.file} (--api-keys)\n"
    )


@pytest.mark.parametrize("flag", ["private", "insecure_no_auth"])
def test_what_contradicts_keys_is_refused(tmp_path: Path, flag: str) -> None:
    """A private service has its socket's permissions; no keys and keys cannot both be meant."""
    file = write(tmp_path / "keys", alice=new_key())
    options: Any = {flag: True}
    with pytest.raises(InvalidArgument, match="exclude each other"):
        serve(ServeOptions(data=tmp_path / "data", api_keys=file, **options))
    assert not (tmp_path / "data").exists()
