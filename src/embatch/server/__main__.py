"""`python -m embatch.server DATA` is the private service of a data folder, as the local target starts it.

The same as `embatch serve --private`, without the half second that the command line's libraries take.
"""

from __future__ import annotations

import sys
from pathlib import Path

from embatch.errors import EmbatchError
from embatch.escapes import visible
from embatch.server import ServeOptions, serve

try:
    code = serve(ServeOptions(Path(sys.argv[1]), private=True))
except EmbatchError as error:
    print(f"error: {visible(error.message)}", file=sys.stderr)  # noqa: T201  (the log that the client shows)
    code = 1
sys.exit(code)
