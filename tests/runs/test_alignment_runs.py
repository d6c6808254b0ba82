"""Runs on a hosted service: what is judged, when it counts, how it is said, and how it is mended."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignment_rows import rows
from hosted.behaviour import Behaviour, Fault
from hosted.gemini import GeminiStandIn
from hosted.moment import Clock as TheirClock
from hosted.vectors import Vectors

from embatch import Client, DataLoss, FailedPrecondition, Unavailable
from embatch.runs.alignment.sampling import Budget, Verify
from embatch.runs.clock import Clock
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source
from embatch.vectors import normalize

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from embatch.runs.progress import Summary

pytestmark = pytest.mark.hosted

ROWS = 1_000
FEW = 120
MODEL = "gemini-embedding-001"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """As many as a batch needs to judge itself."""
    return rows(ROWS, seed=11).texts


@pytest.fixture(scope="module")
def truth(texts: list[str]) -> NDArray[np.float32]:
    """The vector of each text at 128 dimensions."""
    of = Vectors("local")
    return normalize(np.stack([of(text, MODEL, 128) for text in texts]))


@dataclass
class Hosted:
    """A service whose vectors follow from words, and one run on it."""

    google: GeminiStandIn
    folder: Path
    texts: list[str]
    passed: float = 0.0

    def call(self, **more: Any) -> Summary:
        """Call the command once."""
        source, out = self.folder / "in.parquet", str(more.pop("out", self.folder / "out.parquet"))
        if not source.exists():
            pq.write_table(pa.table({"text": self.texts}), source)
        clock = Clock(lambda: self.passed, lambda: self.passed, self._sleep)
        options = RunOptions(self.folder / "data", clock=clock, **more)
        with Client("gemini", api_key=self.google.key, base_url=self.google.url, max_retries=1) as client:
            wanted = EmbedOptions(dimensions=(128,))
            return embed_dataset(
                client, open_source(str(source), None, None), out, wanted, options, lambda _: None
            )

    def _sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.google.clock.advance(seconds)

    def misbehave(self, **how: Any) -> None:
        """Change what the service does wrong."""
        self.google.behaviour = Behaviour(**how)

    def called_again(self) -> int:
        """Return how many texts were embedded one by one so far."""
        found: int = self.google.counts()["items"]
        return found

    def read(self, name: str = "out.parquet") -> tuple[NDArray[np.float32], list[str | None], dict[str, Any]]:
        """Return vectors (NaN where there is none), errors and the verdict of an output."""
        table = pq.read_table(self.folder / name)
        kept = [np.full(128, np.nan) if one is None else one for one in table["embedding"].to_pylist()]
        said = json.loads((table.schema.metadata or {})[b"embatch.alignment"])
        return np.array(kept, np.float32), table["error"].to_pylist(), said


@pytest.fixture
def hosted(tmp_path: Path, texts: list[str]) -> Iterator[Hosted]:
    """Such a service, which does nothing wrong yet."""
    with GeminiStandIn(Behaviour(), TheirClock(1_700_000_000.0), Vectors("local")) as google:
        yield Hosted(google, tmp_path, texts)


@pytest.fixture
def few(hosted: Hosted) -> Hosted:
    """The same with too few rows to judge each other."""
    hosted.texts = hosted.texts[:FEW]
    return hosted


def _wrong(found: NDArray[np.float32], truth: NDArray[np.float32]) -> list[int]:
    """Return the rows whose vectors are not their texts'; a row without one is not wrong."""
    cosines = (normalize(found) * truth).sum(axis=1)
    return np.flatnonzero(cosines < 0.999).tolist()


def test_a_sound_run_says_what_was_looked_at(hosted: Hosted, truth: NDArray[np.float32]) -> None:
    """All rows by each other and 1 % again; the verdict and each row asked for stand in the output."""
    summary = hosted.call()
    found, errors, said = hosted.read()
    assert _wrong(found, truth) == []
    assert errors == [None] * ROWS
    assert (said["v"], said["verdict"], said["rows"], said["surveyed_rows"]) == (1, "sound", ROWS, ROWS)
    assert said["calls"] == len(said["again"]) == hosted.called_again() == 10
    assert all(one["equal"] and one["cosine"] > 0.999 for one in said["again"])
    assert "would have stood out" in said["power"]
    assert "cannot be found" in said["not_found"]
    assert summary.alignment == said
    assert summary.alignment_cpu_seconds > 0
    kept = list((hosted.folder / "data" / "alignment").iterdir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in kept] == [0o600]


def test_misplaced_vectors_are_rejected_and_embedded_again(
    hosted: Hosted, truth: NDArray[np.float32]
) -> None:
    """They come under another name, as failed rows; taken up, the run ends with every vector at its text."""
    hosted.misbehave(swap_pairs=1)
    with pytest.raises(DataLoss, match="vectors came at wrong texts"):
        hosted.call()
    assert not (hosted.folder / "out.parquet").exists()
    found, errors, said = hosted.read("out.rejected.parquet")
    failed = [row for row, error in enumerate(errors) if error is not None]
    assert _wrong(found, truth) == []
    assert said["verdict"] == "damaged"
    assert said["failed"] == len(failed) > 1
    assert any(not one["equal"] and one["cosine"] < 0.9 for one in said["again"])
    hosted.misbehave()
    hosted.call(retry_failed=True)
    found, errors, said = hosted.read()
    assert errors == [None] * ROWS
    assert _wrong(found, truth) == []
    assert said["verdict"] == "sound"
    assert not (hosted.folder / "out.parquet.embatch").exists()


def test_a_rejected_run_goes_on_with_what_it_had_not_worked(few: Hosted, truth: NDArray[np.float32]) -> None:
    """The same command refuses again; taken up, the blocks behind the misplaced one are worked too."""
    few.misbehave(shuffle=40, damaged_batches=(1,))
    for _ in range(2):
        with pytest.raises(DataLoss, match="--retry-failed"):
            few.call(block_rows=40, budget=Budget(calls=12))
    few.misbehave()
    assert few.call(block_rows=40, budget=Budget(calls=12), retry_failed=True).rows == FEW
    found, errors, _ = few.read()
    assert (_wrong(found, truth[:FEW]), errors) == ([], [None] * FEW)
    assert few.google.counts()["creates"] == 1 + -(-FEW // 40)


@pytest.mark.long
def test_a_database_gets_no_block_before_its_verdict(few: Hosted) -> None:
    """What was misplaced is never there, not even for a moment; afterwards all rows are."""
    from qdrant_client import QdrantClient

    place = f"qdrant+file://{few.folder}/store/texts"
    few.misbehave(shuffle=FEW)
    with pytest.raises(DataLoss, match="nothing of them was written"):
        few.call(out=place, budget=Budget(calls=6))
    few.misbehave()
    store = QdrantClient(path=f"{few.folder}/store")
    assert not store.collection_exists("texts") or store.count("texts").count == 0
    store.close()
    assert few.call(out=place, budget=Budget(calls=6), retry_failed=True).rows == FEW


def test_a_service_that_does_not_repeat_itself_is_not_comparable(few: Hosted) -> None:
    """That is no damage: the output is there, and says that nothing was proved."""
    few.misbehave(scatter=0.4)
    summary = few.call()
    assert summary.failed == 0
    assert few.read()[2]["verdict"] == "not comparable"


@pytest.mark.parametrize(("verify", "calls", "verdict"), [("sample", 2, "sound"), ("none", 0, "not checked")])
def test_less_is_checked_where_less_is_wanted(few: Hosted, verify: str, calls: int, verdict: str) -> None:
    """Without anything compared a run never counts as sound."""
    few.call(budget=Budget(Verify(verify)))
    said = few.read()[2]
    assert (said["verdict"], said["calls"], said["surveyed_rows"]) == (verdict, calls, 0)
    assert few.called_again() == calls


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault("embed_many", status=403), FailedPrecondition), (Fault("embed_many"), Unavailable)],
)
def test_what_cannot_be_checked_is_kept_until_it_can(
    few: Hosted, truth: NDArray[np.float32], fault: Fault, error: type[Exception]
) -> None:
    """Nothing is lost and nothing paid again: the same command goes on, or --verify none does."""
    few.misbehave(faults=(fault,))
    with pytest.raises(error, match="--verify none"):
        few.call()
    few.misbehave()
    few.call()
    found, _, said = few.read()
    assert (_wrong(found, truth[:FEW]), said["verdict"]) == ([], "sound")
    assert few.google.counts()["creates"] == 1
