"""Which prompt stands before which text: the table of sentence-transformers 6, as the library gave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tiny import Tiny, write

from embatch.engine import folder
from embatch.engine.prompts import by_task
from embatch.engine.protocol import computed_by
from embatch.engine.texts import compose
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BOTH = {"query": "q: ", "document": "d: "}


@pytest.mark.parametrize(
    ("named", "default", "query", "document", "plain"),
    [
        ({}, None, "", "", ""),
        ({}, "query", "", "", ""),
        (BOTH, None, "q: ", "d: ", ""),
        (BOTH, "query", "q: ", "d: ", "q: "),
        (BOTH, "document", "q: ", "d: ", "d: "),
        ({"query": "q: ", "document": ""}, None, "q: ", "", ""),
        ({"query": "q: ", "document": ""}, "query", "q: ", "", "q: "),
        ({"query": "", "document": "d: "}, "document", "", "d: ", "d: "),
        ({"query": "q: "}, "query", "q: ", "", "q: "),
        ({"document": "d: "}, "document", "", "d: ", "d: "),
        ({"query": "", "document": ""}, "query", "", "", ""),
        ({"query": "q: ", "passage": "p: "}, "passage", "q: ", "", "p: "),
        ({"query": "q: ", "corpus": "c: "}, None, "q: ", "", ""),
        ({"query": "q: ", "document": "", "passage": "p: "}, "query", "q: ", "", "q: "),
        ({"sts": "s: "}, "sts", "", "", "s: "),
        ({"query": "q: ", "sts": "s: "}, "sts", "q: ", "", "s: "),
        # Names that the library asks for by name only.
        ({"Retrieval-query": "q: ", "search_document": "d: "}, None, "q: ", "d: ", ""),
        ({"Query": "q: ", "document": "", "retrieval.document": "d: "}, "Query", "q: ", "d: ", "q: "),
    ],
)
def test_queries_documents_and_others(
    named: Mapping[str, str], default: str | None, query: str, document: str, plain: str
) -> None:
    """An empty prompt is a prompt, and the default stands before neither queries nor documents."""
    prompts = by_task(named, default)

    def seen(task: str | None) -> str:
        return compose("", task, None, prompts)

    assert (seen("RETRIEVAL_QUERY"), seen("RETRIEVAL_DOCUMENT"), seen(None)) == (query, document, plain)
    for task in ("QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY"):
        assert seen(task) == query
    for task in ("CLASSIFICATION", "CLUSTERING"):
        assert seen(task) == plain


def test_a_prompt_of_a_tasks_own_comes_first() -> None:
    """An empty one too."""
    prompts = by_task({**BOTH, "qa": "", "Clustering": "c: ", "STS": "s: "}, "STS")
    assert prompts == {
        "": "s: ",
        "RETRIEVAL_QUERY": "q: ",
        "RETRIEVAL_DOCUMENT": "d: ",
        "SEMANTIC_SIMILARITY": "s: ",
        "CLUSTERING": "c: ",
        "QUESTION_ANSWERING": "",
        "FACT_VERIFICATION": "q: ",
        "CODE_RETRIEVAL_QUERY": "q: ",
    }


@pytest.mark.parametrize(
    ("said", "prompts"),
    [
        ({}, {}),
        ({"prompts": None, "default_prompt_name": None}, {}),
        ({"prompts": {"query": None}, "default_prompt_name": ""}, {"RETRIEVAL_QUERY": ""}),
        ({"prompts": {"x": "x: "}, "default_prompt_name": "x"}, {"": "x: ", "RETRIEVAL_DOCUMENT": ""}),
    ],
)
def test_null_is_empty(tmp_path: Path, said: Mapping[str, object], prompts: Mapping[str, str]) -> None:
    """As the library reads it."""
    path = Tiny().write(tmp_path)
    write(path, "config_sentence_transformers.json", said)
    found = folder.read(path).prompts
    assert {name: found[name] for name in prompts} == prompts
    assert ("" in found) == ("" in prompts)


@pytest.mark.parametrize("default", ["passage", "QUERY", "sts"])
def test_a_default_that_there_is_not_is_refused(tmp_path: Path, default: str) -> None:
    """The library cannot load such a folder either; with none every vector would be another."""
    path = Tiny(prompts=BOTH).write(tmp_path)
    write(path, "config_sentence_transformers.json", {"prompts": BOTH, "default_prompt_name": default})
    with pytest.raises(InvalidArgument, match=r"config_sentence_transformers\.json: default_prompt_name"):
        folder.read(path)


def test_an_empty_prompt_where_there_would_be_none_changes_no_vector() -> None:
    """The library writes such into every folder: a batch under way goes on over the change."""
    from dataclasses import replace

    from embatch.engine import hashing
    from embatch.engine.protocol import EngineSpec

    about = hashing.load(EngineSpec("hashing", "m")).describe()
    told = [
        computed_by(replace(about, prompts=prompts))
        for prompts in ({}, {"RETRIEVAL_QUERY": ""}, {"": "x"}, {"": "x", "RETRIEVAL_QUERY": ""})
    ]
    assert told[0] == told[1]
    assert len(set(told)) == 3
