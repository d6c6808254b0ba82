"""A key is shown to the service that it is for and to nobody else: no log, error or traceback has it."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import orjson
import pytest
from raw_server import Told, answering

from embatch import Client, EmbatchError
from embatch.client.base import ClientOptions, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "AIzaSyCanaryInTheMine"
SUSPENDED = {
    "error": {
        "code": 403,
        "status": "PERMISSION_DENIED",
        "message": f"Permission denied: Consumer 'api_key:{CANARY}' has been suspended.",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": CANARY, "field": CANARY}],
    }
}
CALLS: dict[str, Callable[[Client], object]] = {
    "submit": lambda client: client.async_batch_embed_contents(["a"], display_name="Test"),
    "file": lambda client: client.async_batch_embed_contents(["a"] * 1_001, display_name="Test"),
    "status": lambda client: client.get_batch_status("batches/b"),
    "list": lambda client: [*client.list_batches()],
    "cancel": lambda client: client.cancel_batch("batches/b"),
    "delete": lambda client: client.delete_batch("batches/b"),
    "update": lambda client: client.update_batch("batches/b", priority=1),
    "one": lambda client: client.embed_content("a"),
    "many": lambda client: client.batch_embed_contents(["a"]),
    "count": lambda client: client.count_tokens(["a"]),
    "models": lambda client: [*client.list_models()],
}


@pytest.mark.parametrize("target", ["gemini", "address"])
@pytest.mark.parametrize("call", CALLS)
def test_a_service_that_says_the_key_is_not_repeated(
    call: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Google does so of a key that it has suspended; every logger listens, and the traceback is read."""
    caplog.set_level(logging.DEBUG)
    with answering(Told(403, orjson.dumps(SUSPENDED))) as told:
        name, base_url = ("gemini", told.url) if target == "gemini" else (told.url, None)
        with Client(name, base_url=base_url, api_key=CANARY, max_retries=0) as client:
            with pytest.raises(EmbatchError, match="has been suspended") as refused:
                CALLS[call](client)
            shown = [repr(client), str(client), repr(target_of(client)), repr(vars(client))]
    assert CANARY in str(told.said), "the service was shown no key"
    trace = "".join(traceback.TracebackException.from_exception(refused.value, capture_locals=False).format())
    error = refused.value
    assert CANARY not in "".join([*shown, caplog.text, trace, repr(error), repr(vars(error))])


def test_options_and_copies_have_no_key_to_show() -> None:
    """What is printed, copied or pickled by accident."""
    assert CANARY not in repr(ClientOptions("gemini", None, CANARY, None, None, None, None))
    with Client("gemini", api_key=CANARY) as client:
        for leave in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError) as refused:
                leave(client)
            assert CANARY not in str(refused.value)


def test_a_command_does_not_print_it() -> None:
    """Two keys that differ, an address by its variable, a service that repeats the key."""
    with answering(Told(403, orjson.dumps(SUSPENDED))) as told:
        run = subprocess.run(
            [sys.executable, "-m", "embatch", "list", "--to", "gemini"],
            env={
                **os.environ,
                "GOOGLE_API_KEY": CANARY,
                "GEMINI_API_KEY": f"{CANARY}2",
                "GOOGLE_GEMINI_BASE_URL": told.url,
                "NO_PROXY": "*",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert told.asked == ["GET /v1beta/batches HTTP/1.1"]
    assert "warning: GOOGLE_API_KEY and GEMINI_API_KEY are set and differ" in run.stderr
    assert "has been suspended" in run.stderr
    assert CANARY not in run.stdout + run.stderr
    assert run.returncode != 0
