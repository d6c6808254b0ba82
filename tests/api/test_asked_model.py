"""A batch keeps the name by which its model was asked for, and the model that it began with."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from google import genai
from serving import Served, await_final

from embatch import Client
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

ALIAS = "gemini-embedding-001"
FLAGS = ("--engine", "hashing", "--model", "org/one", "--model", "two")


def named(service: Served, name: str) -> set[tuple[str, str | None]]:
    """Return the model, and what it is an alias of, in every answer that shows a batch."""
    with httpx2.Client(base_url=service.url, timeout=60) as web:
        await_final(web, name)
        changed = web.patch(f"/v1/{name}:updateEmbedContentBatch", json={"priority": "1"})
        listed = web.get("/v1/batches").json()["operations"]
        shown = [
            web.get(f"/v1/{name}").json()["metadata"],
            web.get(f"/v1/{name}?view=BASIC").json()["metadata"],
            changed.json(),
            next(one["metadata"] for one in listed if one["name"] == name),
        ]
    return {(one["model"], one.get("aliasOf")) for one in shown}


def asked_by(google: genai.Client, model: str, count: int = 2) -> Any:
    """Submit a batch by Google's client."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return google.batches.create_embeddings(
            model=model, src={"inlined_requests": {"contents": ["a", "b"][:count]}}
        )


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_the_name_that_was_asked_for_is_the_jobs_model(tmp_path: Path, version: str) -> None:
    """To Google's client, unmodified: in what create, get and list answer, however the model was named."""
    service = Served(tmp_path / "data", *FLAGS, "--alias", f"{ALIAS}=org/one")
    try:
        service.start()
        options = {"base_url": service.url, "api_version": version}
        with genai.Client(api_key="any", http_options=options) as google:  # type: ignore[arg-type]  # a dict is documented
            for asked, own in ((ALIAS, "org/one"), ("one", "org/one"), ("org/one", None), ("two", None)):
                job = asked_by(google, asked)
                assert job.model == f"models/{asked}"
                assert google.batches.get(name=job.name).model == f"models/{asked}"
                assert {one.model for one in google.batches.list() if one.name == job.name} == {
                    f"models/{asked}"
                }
                assert named(service, job.name) == {
                    (f"models/{asked}", None if own is None else f"models/{own}")
                }
    finally:
        if service.process is not None:
            service.kill()


def test_an_alias_that_means_another_model_after_a_restart_leaves_its_batches_alone(tmp_path: Path) -> None:
    """They show the name that was asked for; their own model works them, and what is tried again."""
    service = Served(tmp_path / "data", *FLAGS, "--alias", f"{ALIAS}=org/one")
    try:
        service.start()
        with Client(service.url) as client:
            first = client.async_batch_embed_contents(["a", ""], model=ALIAS, display_name="first")
            first = client.await_batch_completion(first)
            assert (first.model, first.alias_of) == (f"models/{ALIAS}", "models/org/one")
        service.stop()
        service.flags = (*FLAGS, "--alias", f"{ALIAS}=two")
        service.start()
        assert named(service, first.name) == {(f"models/{ALIAS}", "models/org/one")}
        with Client(service.url) as client:
            again = client.await_batch_completion(client.retry_failed(first, ["a", "b"]))
            assert again.worked_by == "models/org/one"
            other = client.async_batch_embed_contents(["b"], model=ALIAS, display_name="other")
            other = client.await_batch_completion(other)
            assert (other.model, other.worked_by) == (f"models/{ALIAS}", "models/two")
            result = client.get_batch_embeddings(first)
            assert len(result.fill(client.get_batch_embeddings(again))) == 2
            with pytest.raises(InvalidArgument, match="do not fit"):
                result.fill(client.get_batch_embeddings(other))
    finally:
        if service.process is not None:
            service.kill()
