"""What a terminal obeys, or draws as nothing, shown as escapes: names and errors are somebody else's words.

A name with an escape sequence would move the cursor or set the title, one with a line end would forge a line
of ours, one with a mark of direction would read backwards.
"""

from __future__ import annotations

import json
import re
from typing import Final

_JOINS: Final = (  # scripts and pictures whose shapes a joiner changes: there it can be seen
    "\u0600-\u109f\u1780-\u18af\u1900-\u1cff\u2190-\u2bff\u3030\u303d\u3297\u3299\ua800-\uabff"
    "\ufb50-\ufdff\ufe70-\ufefe\U00010a00-\U00011fff\U0001f000-\U0001faff"
)
_VARIES: Final = (  # the same of selectors
    "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\u3400-\u9fff\uf900-\ufaff"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
_HIDDEN: Final = re.compile(
    # Controls; letters, marks and blanks drawn as nothing; marks of direction and lines; half characters.
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
    f"|(?<![{_JOINS}\ufe0f])[\u200c\u200d]|[\u200c\u200d](?![{_JOINS}])"
    f"|(?<![{_VARIES}])[\ufe00-\ufe0f\U000e0100-\U000e01ef](?!\u20e3)"
)
_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    r"""Return a text as it may be shown: on one line, with an escape for all that a terminal obeys or hides.

    Those are controls (C0, C1, DEL), marks of direction and of lines, half characters, and what is drawn as
    nothing where it changes nothing that can be seen: `\x1b`, `\u202e`, `\n`.
    """
    return _HIDDEN.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_visible(text: str) -> str:
    """Return JSON that means the same, with JSON's own escapes for what `visible` shows as escapes."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)
