"""The table of names in docs/python.md: all that the guide has, and nothing of ours that there is not."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import embatch

ROOT = Path(__file__).parents[2]
GUIDE = (
    # functions
    *("Gemini.async_batch_embed_contents", "Gemini.await_batch_completion", "Gemini.get_batch_embeddings"),
    *("Gemini.get_batch_status", "Gemini.embed_content", "EmbedContentBatchStats.progress_percentage"),
    *("EmbedContentBatchStats.success_rate", "ContentEmbedding.normalize"),
    *("ContentEmbedding.cosine_similarity", "InlinedEmbedContentResponses.failed_responses"),
    # parameters, options and their values
    *("texts", "opts", ":display_name", ":model", ":task_type", ":retrieval_document", ":retrieval_query"),
    *(":output_dimensionality", ":priority", ":auth", ":gemini", ":vertex_ai", "batch_id", "batch", "query"),
    *(":poll_interval", ":timeout", ":on_progress"),
    # types, fields, states
    *("EmbedContentBatch", "batch.name", "batch.state", "batch.batch_stats", "batch.output"),
    *("batch.output.inlined_responses", "EmbedContentBatchStats", "stats.successful_request_count"),
    *("stats.failed_request_count", "ContentEmbedding", "InlinedEmbedContentResponses", "ArgumentError"),
    *(":pending", ":processing", ":completed", ":failed", "CANCELLED"),
    # returns
    *("{:ok, batch}", "{:ok, embeddings}", "[ContentEmbedding.t()]", "{:error, reason}"),
    *("{:error, %ArgumentError{}}", '{:error, "Batch not yet completed"}', "{:error, :timeout}"),
    "{idx, error}",
    # what the guide's examples define, and what they run
    *("index_documents_async", "perform", "BatchLive", "submit_with_retry", "calculate_poll_interval"),
    *("calculate_timeout", "monitor_batch", "poll_with_backoff", "process_large_dataset", "retry_texts"),
    *("examples/async_batch_embedding_demo.exs", "examples/async_batch_production_demo.exs"),
    "GEMINI_API_KEY",
)
"""Every name of the guide whose system this is: functions, options, types, fields, returns, examples."""


def _rows() -> dict[str, list[str]]:
    """Return the names of ours that stand beside each name of the guide."""
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    names = [row[0].strip("| `") for row in rows]
    assert len(names) == len(set(names)), "a name stands there twice"
    return {name: re.findall("`([^`]+)`", row[1]) for name, row in zip(names, rows, strict=True)}


def _member(owner: object, name: str) -> object:
    if dataclasses.is_dataclass(owner) and name in {field.name for field in dataclasses.fields(owner)}:
        return name
    return getattr(owner, name)


def _check(ours: str) -> None:
    """Fail where an object, an argument or a return type is not what the table says."""
    if "/" in ours:
        assert (ROOT / ours).is_file()
        return
    shape = re.fullmatch(r"([\w.]+)(?:\((?:(\w+)=)?\))?(?: -> (.+))?", ours)
    assert shape is not None, "not a name, name(argument=) or name() -> Type"
    path, argument, returned = shape.groups()
    found: object = embatch
    for part in path.split("."):
        found = _member(found, part)
    if "(" in ours:
        assert callable(found)
        signature = inspect.signature(found)
        assert argument is None or argument in signature.parameters
        assert returned is None or signature.return_annotation == returned


def test_every_name_of_the_guide_stands_in_the_table() -> None:
    """No name of the guide is missing, and none is there that the guide does not have."""
    assert sorted(_rows()) == sorted(GUIDE)


@pytest.mark.parametrize("name", GUIDE)
def test_what_the_table_names_is_there(name: str) -> None:
    """Each object, argument and return type beside a name of the guide exists as it is written."""
    ours = _rows()[name]
    assert ours
    for one in ours:
        _check(one)


def test_every_argument_of_the_client_is_explained() -> None:
    """docs/client.md says of each argument what it does."""
    page = (ROOT / "docs" / "client.md").read_text("utf-8").partition("\n## ")[0]
    first = " ".join(line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `"))
    arguments = set(inspect.signature(embatch.Client).parameters) - {"target", "transport"}
    assert sorted(arguments - set(re.findall(r"`(\w+)`", first))) == []
