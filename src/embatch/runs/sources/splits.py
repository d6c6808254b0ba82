"""The splits of a data set: training and test files that were set apart on purpose are not mixed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from embatch.errors import InvalidArgument
from embatch.runs.locations import divided, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from embatch.runs.sources.files import File

_SPLIT: Final = re.compile(r"(?:^|(?<=[/_.-]))(train|test|validation|valid|dev)(?=[/_.-])")
_SHARD: Final = re.compile(r"([^/]+)-\d{5}-of-\d{5}\.[^/]+$")
"""How the Hub names the files of a split."""


def refuse_splits(place: str | Path, folder: str, files: Sequence[File]) -> None:
    """Refuse to mix what was split on purpose, such as a data set's training and test files."""
    below = [file.path[len(folder) :].lstrip("/") for file in files]
    splits = dict(sorted(found for path in reversed(below) if (found := _split(path)) is not None))
    if len(splits) > 1:
        named = shown(place)
        address, options = divided(named)
        raise InvalidArgument(
            f"{named} holds the splits {', '.join(splits)}: name one with a glob, such as "
            f"'{address.rstrip('/')}/{next(iter(splits.values()))}{options}'",
            field="IN",
        )


def _split(path: str) -> tuple[str, str] | None:
    """Return the split that a file belongs to and a glob of its files, `None` where its path tells none."""
    folder, _, name = path.rpartition("/")
    above, shard, within = _SPLIT.search(f"{folder}/"), _SHARD.search(name), _SPLIT.search(name)
    if shard is not None:
        label, glob = shard[1], f"{shard[1]}-*"
    elif within is not None:
        label, glob = within[1], f"{'*' if within.start() else ''}{name[within.start() : within.end() + 1]}*"
    elif above is None:
        return None
    else:
        label, glob = "", ""
    if above is None:
        return label, f"**/{glob}"
    # As far as the end of the folder that says so.
    end = f"{folder}/".index("/", above.end())
    return f"{above[1]}/{label}".rstrip("/"), f"{folder[:end]}/**{f'/{glob}' if glob else ''}"
