"""Every route of the application, as it lists them itself, behind a connection that asks for keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx2
import orjson
import pytest
from fastapi.routing import iter_route_contexts
from listening import listening
from service_rig import WITHIN

from embatch.api.app import create_app
from embatch.api.auth import Access, line_of, new_key, read_keys
from embatch.api.private import Attached

if TYPE_CHECKING:
    from service_rig import Rig

pytest_plugins = ("rig_fixture",)
OPEN = {"/healthz", "/readyz"}
RIGHT, WRONG = new_key(), new_key()


def routes(rig: Rig) -> list[tuple[str, str]]:
    """Return method and path of every route, that of a private service too."""
    attached = Attached(lambda: None, lambda _: None, lambda: False, linger_seconds=0.0)
    app = create_app(rig.service, rig.settings, attached=attached)
    found = [
        (method, route.path)
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods or ())
        if route.path is not None
    ]
    assert len(found) > 60
    assert {"/healthz", "/readyz", "/openapi.json", "/private/attach"} <= {path for _, path in found}
    return found


def test_every_route_but_health_wants_a_key(rig: Rig) -> None:
    """Without one and with a wrong one 401 in the envelope; with the right one whatever the route answers."""
    access = Access(read_keys(line_of(RIGHT, "alice")[1].encode(), "keys"))
    with listening(rig, access) as address, httpx2.Client(timeout=WITHIN) as http:
        base = address.removesuffix("/v1")
        for method, path in [*routes(rig), ("GET", "/nothing/here")]:
            url = base + re.sub(r"\{[^}]*\}", "test", path)
            content = orjson.dumps({}) if method in ("POST", "PUT", "PATCH") else None
            headers = {"content-type": "application/json"}
            statuses = []
            for key in ({}, {"x-goog-api-key": WRONG}, {"authorization": f"Bearer {WRONG}"}):
                reply = http.request(method, url, content=content, headers=headers | key)
                statuses.append(reply.status_code)
                if reply.status_code == 401 and method != "HEAD":
                    error = reply.json()["error"]
                    assert (error["code"], error["status"]) == (401, "UNAUTHENTICATED")
                    assert error["details"][0]["reason"] == ("WRONG_KEY" if key else "NO_KEY")
                    assert reply.headers["www-authenticate"].startswith("Bearer")
                    assert WRONG not in reply.text
            assert statuses == ([200] * 3 if path in OPEN else [401] * 3), (method, path)
            for key in ({"x-goog-api-key": RIGHT}, {"authorization": f"Bearer {RIGHT}"}):
                assert http.request(method, url, content=content, headers=headers | key).status_code != 401


@pytest.mark.parametrize("key", [None, WRONG], ids=["no key", "a wrong key"])
def test_a_stranger_learns_whether_it_is_ready_and_no_name(rig: Rig, key: str | None) -> None:
    """The reasons, which have names of models and words of engines, are for those with a key."""
    access = Access(read_keys(line_of(RIGHT, "alice")[1].encode(), "keys"))
    rig.store.broken_signal.set()
    headers = {} if key is None else {"x-goog-api-key": key}
    with listening(rig, access) as address, httpx2.Client(base_url=address, timeout=WITHIN) as http:
        ready = address.removesuffix("/v1") + "/readyz"
        stranger = http.get(ready, headers=headers)
        assert (stranger.status_code, stranger.json()) == (503, {"status": "unready"})
        assert http.get(ready, headers={"x-goog-api-key": RIGHT}).json()["reasons"]
    with listening(rig) as address, httpx2.Client(base_url=address, timeout=WITHIN) as http:
        assert http.get(address.removesuffix("/v1") + "/readyz").json()["reasons"]
