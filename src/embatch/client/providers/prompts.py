"""What a text is for, said in the text: models of Google's that take it no other way.

gemini-embedding-2 ignores the task type and the title of a request without a word. Google documents how both
are written before the text instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from embatch.batch import TaskType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.batch import Request

_MODELS: Final = "gemini-embedding-2"
"""How the names of such models begin."""
_TASKS: Final[Mapping[TaskType, str]] = {
    TaskType.RETRIEVAL_QUERY: "search result",
    TaskType.QUESTION_ANSWERING: "question answering",
    TaskType.FACT_VERIFICATION: "fact checking",
    TaskType.CODE_RETRIEVAL_QUERY: "code retrieval",
    TaskType.CLASSIFICATION: "classification",
    TaskType.CLUSTERING: "clustering",
    TaskType.SEMANTIC_SIMILARITY: "sentence similarity",
}
"""Google's documented words, ai.google.dev/gemini-api/docs/embeddings, 2026-09; of documents below."""


def prompted(model: str | None, requests: Sequence[Request]) -> Sequence[Request]:
    """Return requests as a model takes them: where it reads only the text, their task and title stand in it.

    A text that is missing or blank stays so, and fails alone as it would without a task.

    Args:
        model: its name; `None` where nobody knows it yet: the requests stay as they are.
        requests: as their user gave them.
    """
    if model is None or not model.removeprefix("models/").startswith(_MODELS):
        return requests
    return [_prompted(one) for one in requests]


def _prompted(request: Request) -> Request:
    task, title, text = request.task_type, request.title, request.text
    if text is not None and text.strip():
        words = None if task is None else _TASKS.get(task)
        if words is not None:
            text = f"task: {words} | query: {text}"
        elif task is not None or title is not None:
            text = f"title: {title or 'none'} | text: {text}"
    return replace(request, text=text, task_type=None, title=None)
