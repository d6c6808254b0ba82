"""The price first: tables of prices, and what a dataset will cost at a hosted service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hosted.behaviour import Behaviour
from hosted.gemini import GeminiStandIn

from embatch import InvalidArgument
from embatch.errors import Unavailable
from embatch.runs.checking import check_room
from embatch.runs.prices import DEFAULT, Price, load
from embatch.runs.tokens import FEWEST, MOST, TokenRate, estimate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.hosted

TEXTS = ["one text of a few words", "another one", "one text of a few words"]


def file(folder: Path, said: Any) -> Path:
    """Return a file of prices."""
    path = folder / "prices.json"
    path.write_bytes(orjson.dumps(said))
    return path


def test_a_file_replaces_prices_and_adds_models(tmp_path: Path) -> None:
    """By provider and model, by the token or the character; the rest of the table stays, and old names."""
    own = {"batch": 1.0, "interactive": 3, "per": "characters"}
    table = load(
        file(tmp_path, {"date": "2027-01", "gemini_batch": 0.05, "models": {"vertex/mine": own}}), {}
    )
    assert table.date == "2027-01"
    assert table.price("vertex", "publishers/google/models/mine") == Price(1.0, 3, "characters")
    assert table.price("vertex", "mine") == Price(1.0, 3, "characters")
    assert table.price("gemini", "models/gemini-embedding-001") == Price(0.05, 0.15)
    assert table.price("vertex", "gemini-embedding-001") == DEFAULT.price("vertex", "gemini-embedding-001")
    assert table.price("gemini", "mine") is None
    assert Price(1.0, 3, "characters").of(5, 2_000_000) == (2.0, 6.0)


def test_the_file_of_prices_is_a_flags_or_the_environments(tmp_path: Path) -> None:
    """The flag counts before the variable; neither leaves the table as it is."""
    named = {"EMBATCH_PRICES": str(file(tmp_path, {"date": "then"}))}
    assert load(None, named).date == "then"
    (tmp_path / "other.json").write_bytes(b'{"date": "now"}')
    assert load(tmp_path / "other.json", named).date == "now"
    assert load(None, {}) is load(None) is DEFAULT
    with pytest.raises(InvalidArgument, match="EMBATCH_PRICES"):
        load(None, {"EMBATCH_PRICES": str(tmp_path / "none.json")})


@pytest.mark.parametrize(
    "said",
    [
        [],
        {"price": 1},
        {"date": 2026},
        {"cpu_hour": "much"},
        {"cpu_hour": True},
        {"gemini_batch": -1},
        {"models": []},
        {"models": {"vertex/m": 1}},
        {"models": {"vertex/m": {"batch": 1}}},
        {"models": {"vertex/m": {"batch": 1, "interactive": -1}}},
        {"models": {"vertex/m": {"batch": 1, "interactive": 1, "per": "words"}}},
        {"models": {"vertex/m": {"batch": 1, "interactive": 1, "for": "tokens"}}},
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, said: Any) -> None:
    """With the file, and what is wanted in it."""
    with pytest.raises(InvalidArgument, match=r"prices\.json"):
        load(file(tmp_path, said), {})


def test_tokens_are_reckoned_from_bytes_and_learned() -> None:
    """Rather too many before a reply has come; close to what replies say from then on."""
    assert estimate([]) == 0
    assert 1_900 / MOST <= estimate(["word " * 1_900]) <= 1_900 / FEWEST * 2
    rate = TokenRate()
    assert rate.tokens(300) == 300
    rate.learn(1_000, 0)
    assert rate.tokens(300) == 300
    rate.learn(1_000, 500)
    assert rate.tokens(300) == 158  # a twentieth more


def command(folder: Path, google: GeminiStandIn, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command against the stand-in."""
    source = folder / "in.jsonl"
    source.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in TEXTS))
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "EMBATCH_DATA": str(folder / "data")}
    environment |= {"GOOGLE_GEMINI_BASE_URL": google.url, "GOOGLE_API_KEY": google.key}
    verb, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "embatch", verb, str(source), *rest, "--to", "gemini"],
        env=environment,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=240,
    )


def test_what_it_will_cost_is_counted_by_the_service_and_nothing_is_sent(tmp_path: Path) -> None:
    """`cost` and `embed --dry-run`: equal texts are paid once as a batch, and each time one by one."""
    with GeminiStandIn() as google:
        for asked in (("cost",), ("embed", "-o", "out.parquet", "--dry-run")):
            done = command(tmp_path, google, *asked)
            assert done.returncode == 0, done.stderr
            assert "3 rows, 3 texts, 2 different; 14 tokens of gemini-embedding-001, 8 of diff" in done.stdout
            assert "Gemini gemini-embedding-001, batch" in done.stdout
            assert "Vertex" not in done.stdout
            assert "reckoned" not in done.stdout
        assert (google.creates, google.items) == (0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_what_is_not_counted_is_reckoned_and_says_how_far_it_may_be_off(tmp_path: Path) -> None:
    """Many an embedding model counts no tokens."""
    with GeminiStandIn(Behaviour(count_tokens=False)) as google:
        done = command(tmp_path, google, "cost")
    assert done.returncode == 0, done.stderr
    assert "they are reckoned from the texts' bytes, and may be 0.7 to 1.7 times as many" in done.stdout


def test_a_dry_run_refuses_what_a_run_refuses(tmp_path: Path) -> None:
    """Terms that nobody can keep to, and an output that no run can write."""
    with GeminiStandIn() as google:
        for arguments, said in (
            (("-o", "out.parquet", "--max-cost", "0"), "--max-cost is an amount of US dollars above 0"),
            (("-o", "in.jsonl"), "is a file of the input"),
        ):
            done = command(tmp_path, google, "embed", *arguments, "--dry-run")
            assert (done.returncode, google.creates) == (2, 0), done.stderr
            assert said in done.stderr


def test_free_disk_is_asked_for_before_anything_is_paid(tmp_path: Path) -> None:
    """For the ledger and an output beside it; what stands there already needs no room."""
    folder, rows = tmp_path / "out.parquet.embatch", 10**12
    check_room("out.parquet", folder, 1, ())
    check_room("out.parquet", folder, None, ())
    with pytest.raises(Unavailable, match=r"GB free, and the results need about .* Nothing was sent"):
        check_room("out.parquet", folder, rows, (128,))
    free = shutil.disk_usage(tmp_path).free
    fits = int(free / (4 * 128 + 64) * 0.9)
    check_room("qdrant://host:1/name", folder, fits, (128,))
    with pytest.raises(Unavailable):
        check_room("out.parquet", folder, fits, (128,))
    folder.mkdir()
    with (folder / "part-000000-0.arrow").open("wb") as part:
        part.truncate(fits * 4 * 128)
    check_room("out.parquet", folder, fits, (128,))
