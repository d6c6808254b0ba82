"""google-genai 2.x, which speaks /v1beta, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from serving import MODEL, serving

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-genai2" / "bin" / "python"


def test_x02_google_genai_2(tmp_path: Path) -> None:
    """Inline and file batches, list, cancel, delete, embed, upload and download, unmodified."""
    if not PYTHON.exists():
        pytest.fail("there is no .venv-genai2: `python3 run.py test` makes it")
    with serving(tmp_path / "data", "--engine-option", "delay=0.02") as service:
        done = subprocess.run(
            [PYTHON, Path(__file__).with_name("genai2_script.py"), service.url, MODEL],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"].startswith("2.")
    assert found["embed"] == [8, 8]
    assert found["inline"] == [True, False, True]
    assert found["keys"] == ["0", "1", "2"]
    assert found["cancelled"] == "JobState.JOB_STATE_CANCELLED"
    assert found["listed"] is True
    assert found["left"] is False
