"""Answers that a real service gave and the line lost: what was done once is not done again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
from client_scripts import unhurried
from serving import serving

from embatch import Client

if TYPE_CHECKING:
    from pathlib import Path


class Losing(httpx2.HTTPTransport):
    """Loses what the service says of complete uploads, as often as it is told."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Let the service answer, and lose it."""
        answer = super().handle_request(request)
        if self.times and answer.headers.get("x-goog-upload-status") == "final":
            self.times -= 1
            answer.read()
            raise httpx2.ReadError("the line broke", request=request)
        return answer


def test_a_file_whose_end_was_not_heard_of_is_sent_once(tmp_path: Path) -> None:
    """The client asks for it, and the service gives the file's name again."""
    with (
        serving(tmp_path / "data") as service,
        httpx2.Client(transport=Losing(3)) as http,
        Client(service.url, http_client=http) as client,
        httpx2.Client(base_url=service.url, timeout=60) as web,
    ):
        unhurried(client)
        batch = client.async_batch_embed_contents([f"text {n}" for n in range(1500)], display_name="Large")
        batch = client.await_batch_completion(batch.name, poll_interval=0.05)
        assert batch.batch_stats.successful_request_count == 1500
        assert [file["name"] for file in web.get("/v1/files").json()["files"]] == [batch.input_file]
