"""Object stores and databases of a test's own: emulators of S3 and Google's, a Postgres with pgvector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hosted.cloud_storage import Emulator

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
    with Emulator(BUCKET) as emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        yield f"gs://{BUCKET}"
