"""What the model gets to see of a request: its prompt, its title, its text, cut to what can matter.

Prompts are the model's own (`Description.prompts`), by task type. The name `DEFAULT_PROMPT` holds the one
for requests without a task type, and for task types the model has none for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.batch import TaskType

if TYPE_CHECKING:
    from collections.abc import Mapping

CHARACTERS_PER_TOKEN: Final = 250
"""No text a person writes has tokens this long on average. Tokenizing 10 MB to keep 256 tokens took 7 to
11 seconds and 2.1 GB; its first 8 kB took under 10 milliseconds."""

DEFAULT_PROMPT: Final = ""
PROMPT_END: Final = "\ufdd0"
"""Ends the prompts of a model whose pooling leaves them out, so that its engine sees where the text begins.
Unicode keeps this character for such uses: no text of anybody has it behind a prompt."""
_NO_TITLE: Final = "title: none"


def compose(text: str, task_type: str | None, title: str | None, prompts: Mapping[str, str]) -> str:
    """Return prompt, title and text as one string.

    A title counts with RETRIEVAL_DOCUMENT only. It takes the place of the words `title: none` where the
    prompt has them, else it stands before the text with a space between, as retrieval benchmarks
    join them (BEIR; Thakur et al. 2021).

    >>> compose("A cell divides.", "RETRIEVAL_DOCUMENT", "Mitosis", {"RETRIEVAL_DOCUMENT": "passage: "})
    'passage: Mitosis A cell divides.'
    """
    prompt = prompts.get(task_type or DEFAULT_PROMPT, prompts.get(DEFAULT_PROMPT, ""))
    if not title or task_type != TaskType.RETRIEVAL_DOCUMENT:
        return prompt + text
    if _NO_TITLE in prompt:
        return prompt.replace(_NO_TITLE, f"title: {title}", 1) + text
    return f"{prompt}{title} {text}"


def cut(text: str, max_tokens: int) -> tuple[str, bool]:
    """Return what of the text is worth tokenizing, and whether anything was left off.

    Every engine does this first in `encode`, so a text of any length costs no more than a long one.
    """
    limit = CHARACTERS_PER_TOKEN * max_tokens
    return (text[:limit], True) if len(text) > limit else (text, False)
