"""The stand-ins in processes of their own outlive their clients and take their orders from a route."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
from typing import TYPE_CHECKING

import httpx2
import pytest
from hosted.behaviour import Behaviour, Fault
from hosted.plain import MODEL, inline
from hosted.serve import served

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.hosted

_CLIENT = """
import json, sys, urllib.request
url, key, body = sys.argv[1:]
ask = urllib.request.Request(url, body.encode(), {"x-goog-api-key": key, "content-type": "application/json"})
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ask)
"""


def test_a_client_is_killed() -> None:
    """A client that is killed while it waits for the answer to its create has created a batch, or none."""
    faults = (
        Fault("create", calls=(1,), cut="silent"),
        Fault("create", calls=(2,), cut="silent", handled=True),
    )
    with served("gemini", Behaviour(stays="PENDING", faults=faults), "--now", "1800000000") as google:
        address = f"{google.url}/v1beta/models/{MODEL}:asyncBatchEmbedContent"
        command = [sys.executable, "-c", _CLIENT, address, google.key, json.dumps(inline("one"))]
        for call in (1, 2):
            client = subprocess.Popen(command)
            google.tell(await_calls={"create": call})
            client.send_signal(signal.SIGKILL)
            client.wait()
            assert google.counts()["creates"] == call - 1
        counts = google.counts()
        assert counts["now"] == 1800000000
        assert [job["state"] for job in counts["jobs"]] == ["PENDING"]
        counts = google.tell(advance=60, finish=None, end="EXPIRED", behaviour={"reorder": True})
        assert (counts["now"], counts["jobs"][0]["state"]) == (1800000060, "EXPIRED")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            google.tell(behaviour={"no_such": True})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            google.tell(no_such=True)


def test_vertex_is_served_too(tmp_path: Path) -> None:
    """Its bucket and its credentials are said at its start; what goes wrong may stand in a file."""
    file = tmp_path / "behaviour.json"
    file.write_text('{"faults": [{"route": "create", "status": 503}]}', "utf-8")
    with served("vertex", None, "--behaviour", str(file)) as google:
        place = "/v1/projects/stand-in-project/locations/us-central1/batchPredictionJobs"
        assert httpx2.post(google.url + place, json={}, trust_env=False, timeout=60).status_code == 503
        assert google.said["bucket"] == "gs://stand-in-bucket"
        assert google.said["service_account"].endswith(".json")
        assert google.tell(expire_tokens=True)["objects"] == []
