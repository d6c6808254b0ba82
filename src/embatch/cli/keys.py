"""The command `keys`: who may call a service that is started with `--api-keys`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from embatch.cli.app import app
from embatch.cli.display import json_line, report, say

keys = App(name="keys", help="Make keys for a service with --api-keys.")
app.command(keys)


@keys.command
def new(
    *,
    id: Annotated[  # noqa: A002  (what the flag is called)
        str | None, Parameter(help="Whose key it is, for the log; made from the key without it.")
    ] = None,
    json: Annotated[bool, Parameter(help="Id, key and line as one JSON object.", negative="")] = False,
) -> None:
    """Make a key and print its line for the file (>> FILE); the key is shown this once and not stored."""
    from embatch.api.auth import line_of, new_key  # noqa: PLC0415  (start-up time of --help)

    key = new_key()
    name, line = line_of(key, id)
    if json:
        say(json_line({"id": name, "key": key, "line": line}))
        return
    say(line)  # first: a key whose line could not be written is none
    # Not to standard output: what is appended to the file must never hold a key.
    report(f"the key of {name}, shown this once: {key}")
