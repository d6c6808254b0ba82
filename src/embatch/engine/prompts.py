"""Which of a model's named prompts stands before the texts of which task type.

The names `query` and `document` mean what they mean to sentence-transformers: RETRIEVAL_QUERY is its
`encode_query`, RETRIEVAL_DOCUMENT its `encode_document`, no task type its `encode`. An empty prompt is a
prompt, and the default one stands before neither queries nor documents, whether they have one or not.
Further names are those that authors give to prompts which the library asks for by name only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.batch import TaskType
from embatch.engine.texts import DEFAULT_PROMPT

if TYPE_CHECKING:
    from collections.abc import Mapping

# Most telling first, compared without case and punctuation.
_NAMES: Final[Mapping[TaskType, tuple[str, ...]]] = {
    TaskType.RETRIEVAL_QUERY: ("query", "searchquery", "retrievalquery", "webquery", "websearchquery"),
    # Not `passage` and `corpus`: sentence-transformers has a `document` always and never comes to them.
    TaskType.RETRIEVAL_DOCUMENT: ("document", "searchdocument", "retrievaldocument", "retrievalpassage"),
    TaskType.SEMANTIC_SIMILARITY: ("semanticsimilarity", "sts", "similarity", "textmatching"),
    TaskType.CLASSIFICATION: ("classification",),
    TaskType.CLUSTERING: ("clustering", "separation"),
    TaskType.QUESTION_ANSWERING: ("questionanswering", "qa"),
    TaskType.FACT_VERIFICATION: ("factverification", "factchecking"),
    TaskType.CODE_RETRIEVAL_QUERY: ("coderetrievalquery", "coderetrieval", "codequery"),
}
_QUERIES: Final = (TaskType.QUESTION_ANSWERING, TaskType.FACT_VERIFICATION, TaskType.CODE_RETRIEVAL_QUERY)
"""A question and a claim are looked up among documents: without a prompt of their own they are queries."""
ALWAYS: Final = ("query", "document")
"""Names that sentence-transformers has in every model, with an empty prompt where the folder gives none."""


def by_task(named: Mapping[str, str], default: str | None) -> dict[str, str]:
    """Return the prompts as `Description.prompts` holds them.

    Args:
        named: the folder's prompts by the names it gives them.
        default: the name of the one for texts that no other is meant for; one of `named` or `ALWAYS`. `None`:
            they get none.
    """
    plain = {"".join(filter(str.isalnum, name)).lower(): text for name, text in named.items()}
    plain |= {name: named[name] for name in ALWAYS if name in named}
    prompts = {task: text for task in _NAMES if (text := _first(plain, _NAMES[task])) is not None}
    usual = named.get(default, "") if default is not None else ""
    if usual:
        for task in (TaskType.RETRIEVAL_QUERY, TaskType.RETRIEVAL_DOCUMENT):
            prompts.setdefault(task, "")
    if TaskType.RETRIEVAL_QUERY in prompts:
        for task in _QUERIES:
            prompts.setdefault(task, prompts[TaskType.RETRIEVAL_QUERY])
    return {str(task): text for task, text in prompts.items()} | ({DEFAULT_PROMPT: usual} if usual else {})


def _first(plain: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """Return the first prompt with words in it, else an empty one if there is one."""
    found = [plain[name] for name in names if name in plain]
    return next((text for text in found if text), "" if found else None)
