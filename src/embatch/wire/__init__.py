"""The protocols as they stand on the wire: the only place that knows their spellings."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""Of what client and service say to each other: counted up where one would not understand the other."""
