"""Draw the diagram in `lifecycle.md` from the transition table: `python docs/lifecycle.py` renews it."""

from __future__ import annotations

from pathlib import Path

from embatch.states import TRANSITIONS

PAGE = Path(__file__).with_name("lifecycle.md")
BEGIN, END = "<!-- drawn by docs/lifecycle.py -->\n", "<!-- end -->\n"


def diagram() -> str:
    """Return the transition table as a Mermaid state diagram."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> PENDING: submit"]
    for state, arrows in TRANSITIONS.items():
        lines += [f"    {state} --> {target}: {event}" for event, target in arrows.items()]
    lines += [f"    {state} --> [*]" for state in TRANSITIONS if state.final]
    return "\n".join([*lines, "```", ""])


def drawn(page: str) -> str:
    """Return the page with its diagram renewed."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + diagram() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
