"""The protocols as they stand on the wire: the only place that knows their spellings."""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""Of what client and service say to each other: counted up where one would not understand the other."""

ATTACH: Final = "/private/attach"
"""Where a client holds on to its private service."""
STOP: Final = "/private/stop"
"""Where a private service is told to end."""
INSTANCE: Final = "Embatch-Instance"
"""Header of every answer: the random name in the note, by which clients know that it was this service's."""
