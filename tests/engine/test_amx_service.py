"""Vectors do not depend on the plan: another order, other company, another budget, a crash."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from serving import await_final, serving
from tiny import Tiny

from embatch.engine.amx.library import ELSEWHERE, SWITCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytest_plugins = ("kernel_fixtures",)

TEXTS = 700
FILLER = " " * 8000
"""No tokens, and a dozen shards instead of one: the first is finished long before the last."""


def texts() -> list[str]:
    """Return different texts of uneven length; the model's tokens are letters."""
    chance = random.Random(11)
    words = ["river", "stone", "lamp", "orchard", "signal", "copper", "winter", "ladder"]
    return [
        f"{place} {FILLER}" + " ".join(chance.choices(words, k=chance.randint(1, 40)))
        for place in range(TEXTS)
    ]


def submit(web: httpx2.Client, model: str, content: Sequence[str]) -> str:
    """Submit a batch and return its name."""
    requests = [{"request": {"content": {"parts": [{"text": text}]}}} for text in content]
    body = {"batch": {"displayName": "same", "inputConfig": {"requests": {"requests": requests}}}}
    reply = web.post(f"/v1/models/{model}:asyncBatchEmbedContent", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["name"])


def vectors(web: httpx2.Client, name: str, content: Sequence[str]) -> dict[str, list[float]]:
    """Return the vector of each text of a finished batch."""
    operation = await_final(web, name)
    items = operation["response"]["inlinedResponses"]["inlinedResponses"]
    return {text: item["response"]["embedding"]["values"] for text, item in zip(content, items, strict=True)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that the kernel takes."""
    return Tiny(heads=2, positions=512, max_tokens=512).write(tmp_path_factory.mktemp("models") / "tiny")


def ready(service: Any) -> dict[str, Any]:
    """Return what the log says of the first engine that got ready."""
    return next(event for event in service.events() if event["event"] == "engine ready")


def test_output_does_not_depend_on_the_plan(tmp_path: Path, model: Path, kernel: Path) -> None:
    """Planned otherwise, on two threads instead of one, killed in the middle: every vector is the same."""
    content = texts()
    flags = ("--engine", "auto", "--model", str(model))
    calm = {ELSEWHERE: str(kernel), "EMBATCH_MICRO_BATCH_TOKENS": "4096"}
    with (
        serving(tmp_path / "calm", *flags, "--threads", "1", environ=calm) as service,
        httpx2.Client(base_url=service.url, timeout=60) as web,
    ):
        expected = vectors(web, submit(web, "tiny", content), content)
        assert ready(service)["engine"] == "amx"
    other = [*reversed(content), "a text more"]
    wild = {ELSEWHERE: str(kernel), "EMBATCH_MICRO_BATCH_TOKENS": "300"}
    with serving(tmp_path / "wild", *flags, "--threads", "2", environ=wild) as service:
        with httpx2.Client(base_url=service.url, timeout=60) as web:
            name = submit(web, "tiny", other)
            deadline, done = time.monotonic() + 60, 0
            while not done:
                assert time.monotonic() < deadline, "nothing was finished"
                stats = web.get(f"/v1/{name}").json()["metadata"]["batchStats"]
                done = int(stats.get("successfulRequestCount", 0))
            assert done < len(other), "it was finished before it could be killed"
        service.kill()
        service.start()
        with httpx2.Client(base_url=service.url, timeout=60) as web:
            found = vectors(web, name, other)
    del found["a text more"]
    assert found == expected


def test_the_reference_path_is_float32(tmp_path: Path, model: Path, kernel: Path) -> None:
    """Texts are compared with float32 of another engine, started for that alone, without our options."""
    content = [text.replace(FILLER, "") for text in texts()[:80]]
    named = ("--engine", "amx", "--engine-option", "affinity=cores", "--model", str(model))
    with (
        serving(tmp_path, *named, "--threads", "1", environ={ELSEWHERE: str(kernel)}) as service,
        httpx2.Client(base_url=service.url, timeout=60) as web,
    ):
        name = submit(web, "tiny", content)
        vectors(web, name, content)
        # What one text at a time costs was measured in the same engine, not in one that is slower.
        assert web.get(f"/v1/{name}?view=BASIC").json()["metadata"]["usage"]["interactiveCpuSeconds"] > 0
        assert [event["engine"] for event in service.events() if event["event"] == "engine ready"] == ["amx"]
        assert web.post("/v1/models/tiny:embedReference", json={"requests": []}).status_code == 200
        body = {"requests": [{"content": {"parts": [{"text": text}]}} for text in content[:4]]}
        reply = web.post("/v1/models/tiny:embedReference", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["engine"]["precision"] == "bf16"
        served = [event for event in service.events() if event["event"] == "engine ready"]
    found = [(event["engine"], event["precision"]) for event in served]
    assert found == [("amx", "bf16"), ("openvino", "f32")]


def test_the_log_says_why_not(tmp_path: Path, model: Path) -> None:
    """Which engine serves stands in the log in one line, with what stood against the faster one."""
    with (
        serving(
            tmp_path / "data", "--engine", "auto", "--model", str(model), environ={SWITCH: "off"}
        ) as service,
        httpx2.Client(base_url=service.url, timeout=60) as web,
    ):
        vectors(web, submit(web, "tiny", ["one"]), ["one"])
        said = ready(service)
    assert said["engine"] == "openvino"
    assert said["not_amx"] == "switched off by EMBATCH_AMX=off"
