"""The commands of "Keys" in docs/operations.md, one after the other as a reader types them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import MODEL, serving

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def _shell(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done


def _key(done: subprocess.CompletedProcess[str], name: str) -> str:
    said = re.fullmatch(rf"the key of {name}, shown this once: (\S+)\n", done.stderr)
    assert said is not None, done.stderr
    return said[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page shows it")
def test_the_commands_of_keys_do_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is made, a service starts with it, client and curl send it, a second one counts after SIGHUP."""
    section = PAGE.read_text("utf-8").partition("\n## Keys\n")[2].partition("\n## ")[0]
    make, use, add = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    before, _, serve = make.partition("embatch serve --data ./state ")
    alice = _key(_shell(tmp_path, before), "alice")
    monkeypatch.chdir(tmp_path)
    flags = shlex.split(serve.replace("--port 8080", "--port 0"))
    with serving(tmp_path / "state", *flags) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert "--api-keys" in flags
        use = use.replace("http://127.0.0.1:8080", url)
        for key in (alice, _key(_shell(tmp_path, add), "bob")):
            deadline = time.monotonic() + 60
            while key != alice and service.log.read_text().count('"keys read"') < 2:
                assert time.monotonic() < deadline, "it does not read its keys again"
                time.sleep(0.02)  # a log gives no signal
            assert _shell(tmp_path, use.replace("embatch-...", key)).stdout.count(MODEL) >= 2
