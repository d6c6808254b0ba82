"""Five gigabytes of text, file to file: memory stays what a block takes, whatever the file is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import serving

if TYPE_CHECKING:
    from pathlib import Path

BYTES = 5 << 30
TEXT = 2000
"""Characters of a text: what the hashing engine takes without cutting."""
LIMIT = 700 << 20
"""Most memory of the run's process: its libraries, and three blocks of 20,000 such texts on their way."""


def _generate(path: Path) -> int:
    """Write texts that differ from one another; return how many."""
    rows, group = BYTES // TEXT, 10_000
    filler = "x" * (TEXT - 20)
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        for begin in range(0, rows, group):
            texts = [f"{at:019} {filler}" for at in range(begin, min(begin + group, rows))]
            writer.write_table(pa.table({"text": texts}))
    return rows


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_five_gigabytes_in_bounded_memory(tmp_path: Path) -> None:
    """Every row is in the output, and neither the run nor the service grew with the file."""
    rows = _generate(tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    with serving(tmp_path / "data", "--engine-option", "dimensions=8") as service:
        flags = ("--no-cache", "--to", service.url, "--data", str(tmp_path / "own"))
        process = subprocess.Popen(
            [sys.executable, "-m", "embatch", "embed", str(tmp_path / "in.parquet"), "-o", str(out), *flags]
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    peak = usage.ru_maxrss << 10
    print(f"{rows:,} rows, {BYTES >> 30} GiB of text: peak of the run {peak >> 20} MiB")  # noqa: T201  (a figure)
    assert pq.read_metadata(out).num_rows == rows
    assert peak < LIMIT
