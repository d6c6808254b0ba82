"""The stand-ins in processes of their own outlive their clients and take their orders from a route."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error

import pytest
from hosted.behaviour import Behaviour, Fault
from hosted.plain import MODEL, inline
from hosted.serve import served

_CLIENT = """
import json, sys, urllib.request
url, key, body = sys.argv[1:]
ask = urllib.request.Request(url, body.encode(), {"x-goog-api-key": key, "content-type": "application/json"})
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ask)
"""


def test_a_client_is_killed() -> None:
    """A client that is killed while it waits for the answer to its create has created one batch."""
    faults = (Fault("create", cut="silent", calls=(2,)),)
    with served("gemini", Behaviour(stays="PENDING", faults=faults), "--now", "1800000000") as google:
        address = f"{google.url}/v1beta/models/{MODEL}:asyncBatchEmbedContent"
        command = [sys.executable, "-c", _CLIENT, address, google.key, json.dumps(inline("one"))]
        subprocess.run(command, check=True)
        client = subprocess.Popen(command)
        google.tell(await_calls={"create": 2})
        client.send_signal(signal.SIGKILL)
        client.wait()
        counts = google.counts()
        assert (counts["creates"], counts["now"]) == (1, 1800000000)
        assert [job["state"] for job in counts["jobs"]] == ["PENDING"]
        counts = google.tell(advance=60, finish=None, end="EXPIRED", behaviour={"reorder": True})
        assert (counts["now"], counts["jobs"][0]["state"]) == (1800000060, "EXPIRED")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            google.tell(behaviour={"no_such": True})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            google.tell(no_such=True)


def test_vertex_is_served_too() -> None:
    """Its project, its bucket and the files of its credentials are said at its start."""
    with served("vertex") as google:
        assert google.said["bucket"] == "gs://stand-in-bucket"
        assert google.said["service_account"].endswith(".json")
        assert google.tell(expire_tokens=True)["objects"] == []
