"""Globs: which paths one names, in time linear in the path, and whether a name that is hidden is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

WILD: Final = re.compile(r"[*?\[]")
HIDDEN: Final = "._"
"""What names begin with that tools leave beside data: a glob has to spell it."""
_TOKEN: Final = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)

_MOST_STEPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class GlobState:
    """Where a glob is in a path, a bit for each of its tokens that may come next."""

    spelled: int
    """With hidden names only where the glob spells their beginning."""
    any: int
    """With hidden names like all others."""


@dataclass(slots=True)
class Glob:
    """A glob, its tokens gone through side by side: `*` stays within a folder, `**` does not.

    Attributes:
        text: the glob.
    """

    text: str
    _tokens: list[str] = field(init=False, repr=False)
    _open: int = field(init=False, repr=False, default=0)
    """Tokens that may be left out."""
    _steps: dict[tuple[int, str, bool], int] = field(init=False, repr=False, default_factory=dict)
    """Steps that were made before: paths of one folder begin alike."""

    def __post_init__(self) -> None:
        tokens = list[str]()
        for piece in _TOKEN.findall(self.text):
            last = tokens[-1] if tokens else ""
            if piece in ("*", "**") and last in ("*", "**"):
                tokens[-1] = max(piece, last)
            elif piece == "**/":
                if last != "/**/":  # one of them says it
                    tokens += ["**/", "/**/"]
            else:
                tokens.append(piece)
        self._tokens = tokens
        self._open = sum(1 << at for at, piece in enumerate(tokens) if piece in ("*", "**", "**/"))

    @classmethod
    def below(cls, folder: str) -> Glob:
        """Return the glob of everything below a folder, whatever is in the folder's name."""
        glob = cls("**")
        prefix = list(f"{folder.rstrip('/')}/")
        glob._tokens = [f"\\{one}" for one in prefix] + glob._tokens
        glob._open <<= len(prefix)
        return glob

    def begin(self) -> GlobState:
        """Return the state before the first character."""
        start = self._closed(1)
        return GlobState(start, start)

    def step(self, state: GlobState, text: str) -> GlobState:
        """Return the state behind more of a path."""
        spelled, loose, begins = state.spelled, state.any, False
        for one in text:
            loose = self._after(loose, one, hidden=False)
            spelled = self._after(spelled, one, hidden=begins and one in HIDDEN)
            begins = one == "/"
        return GlobState(spelled, loose)

    def _after(self, states: int, one: str, *, hidden: bool) -> int:
        """Return the states behind one more character; `hidden`: it begins a name that is."""
        known = self._steps.get((states, one, hidden))
        if known is None:
            stay, go = self._taking(one, hidden=hidden)
            known = self._closed(states & stay | (states & go) << 1) if states else 0
            if len(self._steps) > _MOST_STEPS:
                self._steps.clear()
            self._steps[states, one, hidden] = known
        return known

    def ends(self, states: int) -> bool:
        """Return whether the path so far is one that the glob names."""
        return bool(states >> len(self._tokens) & 1)

    def names(self, path: str) -> bool:
        """Return whether the glob names a path."""
        return self.ends(self.step(self.begin(), path).spelled)

    @property
    def narrow(self) -> bool:
        """Whether the last name has a letter of its own: what it names is meant, not only met."""
        return bool(re.sub(r"\[[^\]]+\]|[*?.]", "", self.text.rpartition("/")[2]))

    def _closed(self, states: int) -> int:
        """Return the states with those reached by leaving out what may be left out."""
        while True:
            more = states | (states & self._open) << 1 | self._doubled(states)
            if more == states:
                return states
            states = more

    def _doubled(self, states: int) -> int:
        """`**/` stands for no folder, or for what its second piece takes: some names and a slash."""
        found = 0
        rest = states & self._open
        while rest:
            low = rest & -rest
            at = low.bit_length() - 1
            if self._tokens[at] == "**/":
                found |= low << 2
            rest ^= low
        return found

    def _taking(self, one: str, *, hidden: bool) -> tuple[int, int]:
        """Return the tokens that take a character and stay, and those that take it and are done."""
        stay = go = 0
        for at, piece in enumerate(self._tokens):
            slash = one == "/"
            if piece in ("**", "/**/"):
                stay |= (not hidden) << at
                go |= (slash and piece == "/**/") << at
            elif piece == "*":
                stay |= (not slash and not hidden) << at
            elif piece == "?":
                go |= (not slash and not hidden) << at
            elif piece == "**/":
                pass
            elif len(piece) > 2 and piece[0] == "[":
                go |= (not slash and _within(one, piece[1:-1]) and not (hidden and piece[1] == "!")) << at
            else:
                go |= (piece[-1] == one) << at
        return stay, go


def _within(one: str, members: str) -> bool:
    """Return whether a character is of a class: letters and ranges, all others behind a `!`."""
    but, members = members[:1] == "!", members.removeprefix("!")
    found, at = False, 0
    while at < len(members):
        if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
            found |= members[at] <= one <= members[at + 2]
            at += 3
        else:
            found |= members[at] == one
            at += 1
    return found != but
