"""Object stores and databases of a test's own: emulators of S3 and Google's, a Postgres with pgvector."""

from __future__ import annotations

import warnings
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ("postgres_server",)

BUCKET = "bucket"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 with an empty bucket; AWS_ENDPOINT_URL names it. The address of the bucket."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
    made.create_dir(BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Google's store with an empty bucket; STORAGE_EMULATOR_HOST names it. The address of the bucket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its file-system library is old
        from gcp_storage_emulator import server as emulator

        # One connection at a time would wait for ever on a client that keeps several open.
        monkeypatch.setattr(emulator.server, "HTTPServer", ThreadingHTTPServer)
        server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")
    yield f"gs://{BUCKET}"
    server.stop()
