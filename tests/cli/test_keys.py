"""`embatch keys new` as people and scripts use it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import orjson
import pytest

KEY = r"embatch-[A-Za-z0-9]{43}"


def _new(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embatch", "keys", "new", *arguments],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_line_goes_to_standard_output_and_the_key_beside_it() -> None:
    """So that `>> FILE` can never store a key."""
    done = _new("--id", "alice")
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(rf"the key of alice, shown this once: ({KEY})\n", done.stderr)
    assert said is not None
    assert done.stdout == f"alice {hashlib.sha256(said[1].encode()).hexdigest()}\n"


def test_one_object_for_scripts() -> None:
    """With an id made of the digest where none is given."""
    done = _new("--json")
    assert (done.returncode, done.stderr) == (0, "")
    made = orjson.loads(done.stdout)
    assert re.fullmatch(KEY, made["key"])
    digest = hashlib.sha256(made["key"].encode()).hexdigest()
    assert (made["id"], made["line"]) == (f"key-{digest[:8]}", f"key-{digest[:8]} {digest}")


@pytest.mark.parametrize("name", ["", "two words", "#alice"])
def test_an_id_that_no_line_can_have_is_refused(name: str) -> None:
    """Before a key is shown."""
    done = _new("--id", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: an id is 1 to 64 letters, digits, dots,")
    assert done.stderr.endswith(" (--id)\n")
