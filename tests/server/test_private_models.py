"""`POST /private/models` of a real service: on the socket of a private one, and nowhere else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx2
import pytest
from serving import MODEL, serving
from tiny import Tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUTE = "/private/models"


@contextmanager
def speaking(url: str) -> Iterator[httpx2.Client]:
    """Speak to a service by its address or socket."""
    path = url.removeprefix("unix:")
    transport = httpx2.HTTPTransport(uds=path) if path != url else httpx2.HTTPTransport()
    base = "http://localhost" if path != url else url
    with httpx2.Client(transport=transport, base_url=base, trust_env=False, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A private service that a client is attached to."""
    with (
        serving(tmp_path_factory.mktemp("private") / "data", "--private") as service,
        speaking(service.url) as http,
        http.stream("GET", "/private/attach") as attached,
    ):
        held = attached.iter_raw()  # whose end would be the client's
        next(held)
        yield http


def test_a_folder_is_served_and_listed(private: httpx2.Client, tmp_path: Path) -> None:
    """Its name is the answer, embeds, and stands in the list of models, behind the default one."""
    path = Tiny().write(tmp_path / "final")
    found = private.post(ROUTE, json={"folder": str(path)})
    assert (found.status_code, found.json()["fetched_bytes"]) == (200, 0)
    name = found.json()["name"]
    assert private.post(ROUTE, json={"folder": str(path), "model": None}).json()["name"] == name
    listed = [model["name"] for model in private.get("/v1/models").json()["models"]]
    assert listed[0] == f"models/{MODEL}"
    assert f"models/{name}" in listed
    body = {"content": {"parts": [{"text": "a"}]}}
    embedded = private.post(f"/v1/models/{name}:embedContent", json=body).json()
    assert len(embedded["embedding"]["values"]) == 64
    assert private.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"{", "body", "no JSON object"),
        (b"[]", "body", "no JSON object"),
        (b'{"path": "/x"}', "body", "there is no field 'path'"),
        (b'{"folder": 3}', "folder", "folder is a text"),
        (b'{"engine": null}', "engine", "engine is a text"),
        (b'{"options": {"pooling": 1}}', "options", "texts by name"),
        (b'{"folder": "/x\\u0000"}', "folder", "NUL"),
        (b'{"folder": "/x", "model": "y"}', "model", "a name or a folder"),
        (b'{"folder": "final"}', "model", "whole path"),
        (b'{"model": "m", "engine": "fast"}', "engine", "engine must be one of"),
    ],
)
def test_what_asks_for_no_model_is_refused(
    private: httpx2.Client, body: bytes, field: str, words: str
) -> None:
    """Each by the member at fault."""
    refused = private.post(ROUTE, content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert words in error["message"]
    assert [v["field"] for one in error["details"] for v in one.get("fieldViolations", [])] == [field]


def test_a_folder_that_is_not_there_is_a_model_that_is_not_there(private: httpx2.Client) -> None:
    """It has the reason of one, which an address that nobody knows has not."""
    missing = private.post(ROUTE, json={"folder": "/nowhere/at/all"})
    assert missing.status_code == 404
    assert "MODEL_NOT_FOUND" in missing.text
    assert "MODEL_NOT_FOUND" not in private.post("/private/other").text


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_a_model_that_is_not_there(
    private: httpx2.Client, tmp_path: Path, name: str
) -> None:
    """The reason of one here too: without it a client takes this for a service that others share."""
    path = Tiny().write(tmp_path / "final")
    (path / name).unlink()
    lacking = private.post(ROUTE, json={"folder": str(path)})
    assert lacking.status_code == 404
    assert "MODEL_NOT_FOUND" in lacking.text
    assert name in lacking.text


@pytest.mark.parametrize("place", [("--port", "0"), ("--socket", "SOCKET")])
def test_a_service_that_others_share_takes_no_models(tmp_path: Path, place: tuple[str, ...]) -> None:
    """On a port and on a socket alike there is nothing at this address."""
    flags = [str(tmp_path / "s.sock") if word == "SOCKET" else word for word in place]
    with serving(tmp_path / "data", *flags) as service, speaking(service.url) as http:
        answer = http.post(ROUTE, json={"folder": str(Tiny().write(tmp_path / "final"))})
        assert answer.status_code == 404
        assert [one["name"] for one in http.get("/v1/models").json()["models"]] == [f"models/{MODEL}"]
