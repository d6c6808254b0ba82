"""`python -m embatch.server DATA [cold]` is the private service of a folder, as the local target starts it.

The same as `embatch serve --private`, without the half second that the command line's libraries take. With
`cold` no engine is loaded before somebody needs one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from embatch.errors import EmbatchError
from embatch.escapes import visible
from embatch.server import ServeOptions, serve
from embatch.wire.private import COLD

try:
    code = serve(ServeOptions(Path(sys.argv[1]), private=True, preload=COLD not in sys.argv[2:]))
except EmbatchError as error:
    print(f"error: {visible(error.message)}", file=sys.stderr)  # noqa: T201  (the log that the client shows)
    code = 1
sys.exit(code)
