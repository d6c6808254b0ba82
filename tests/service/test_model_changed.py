"""A model that changed while a batch was under way: no batch has vectors of two."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from service_rig import DIMENSIONS, MODEL, Rig, large, rows, vector

from embatch.engine import hashing
from embatch.engine.models import Catalog
from embatch.engine.protocol import computed_by
from embatch.errors import Code, EngineTrouble, Reason, RequestError
from embatch.pool.local import LocalPool
from embatch.pool.work import ShardWork
from embatch.service.cutting import ShardCutter
from embatch.service.intake import Draft
from embatch.settings import Settings
from embatch.shard import COMPUTED_BY, RequestRow, said_of, with_precomputed
from embatch.states import State

pytest_plugins = ("rig_fixture",)


def changed(**options: str) -> Catalog:
    """Return what serves a model of the same name that computes other vectors."""
    spec = replace(MODEL.spec, options={**MODEL.spec.options, **options})
    return Catalog([replace(MODEL, spec=spec, dimensions=int(spec.options["dimensions"]))])


@pytest.mark.parametrize("options", [{"max_tokens": "3"}, {"dimensions": "4"}, {"dimensions": "16"}])
def test_a_batch_has_vectors_of_one_model_alone(rig: Rig, options: dict[str, str]) -> None:
    """Killed in the middle and started with another model of the name: the rest fails and says why."""
    rig.pool.gated = True
    given = [*large(4), RequestRow("", fault=RequestError(Code.INVALID_ARGUMENT, Reason.EMPTY_TEXT, "empty"))]
    name = rig.service.submit_inline(Draft(), given).name
    rig.pool.allow(3)
    rig.until(lambda: rig.service.get(name).batch_stats.successful_request_count == 8)
    rig.restart(changed(**options))
    done = rig.done(name)
    stats = done.batch_stats
    assert (done.state, stats.successful_request_count, stats.failed_request_count) == (
        State.COMPLETED,
        8,
        25,
    )
    assert rig.pool.calls == []
    found = rig.read(name)
    assert [row["embedding"] for row in found if row["embedding"]] == [
        vector(str(row.text)) for row in (given[row["index"]] for row in found if row["embedding"])
    ]
    failed = [(row["error_code"], row["error_reason"]) for row in found if row["embedding"] is None]
    assert failed == [(9, "MODEL_CHANGED")] * 24 + [(3, "EMPTY_TEXT")]
    assert "the model changed after the batch had begun" in found[-2]["error_message"]
    assert "submit" in found[-2]["error_message"]
    # What is submitted now is worked, and so is the old batch's like under the old model.
    other = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(other).batch_stats.successful_request_count == 3


def test_a_batch_nothing_was_computed_of_goes_on_under_another_model(rig: Rig) -> None:
    """There is nothing that its vectors could be unlike."""
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), large(3)).name
    rig.until(lambda: rig.pool.running == 2)
    rig.restart(changed(max_tokens="3"))
    assert rig.done(name).batch_stats.successful_request_count == 24


def test_a_model_that_changes_while_a_shard_is_worked_is_noticed_when_it_is_stored(rig: Rig) -> None:
    """The result is dropped with its file, and the next attempt finds out."""
    began: list[str] = []

    def begin_otherwise() -> None:
        if not began:
            began.append("elsewhere")
            with closing(sqlite3.connect(rig.folder / "embatch.db")) as database, database:
                database.execute("UPDATE batch SET computed_by = 'something else'")

    rig.before["commit"] = begin_otherwise
    name = rig.service.submit_inline(Draft(), rows(3)).name
    assert rig.done(name).batch_stats.failed_request_count == 3
    assert [row["error_reason"] for row in rig.read(name)] == ["MODEL_CHANGED"] * 3
    assert rig.files() == {name, f"{name}/payload-00000.arrow", f"{name}/result-00000-2.arrow"}
    assert [suspect for _, _, suspect in rig.pool.calls] == [False]


def test_frozen_vectors_of_another_model_are_computed_anew() -> None:
    """Those of the model that works the shard stay; a shard that does not say keeps them, too."""
    pool = LocalPool(Settings())
    try:
        cutter = ShardCutter()
        cutter.add(RequestRow("text"))
        requests = cutter.rest()
        assert requests is not None
        kept = np.full((1, DIMENSIONS), 0.5, np.float32)
        given = with_precomputed(requests, np.array([True]), kept, np.array([1], np.int32), np.array([False]))
        about = computed_by(pool.describe(MODEL))
        for said, expected in ((about, kept[0].tolist()), ("something else", vector("text"))):
            shard = given.replace_schema_metadata({COMPUTED_BY: said.encode()})
            found = pool.embed(MODEL, shard, on_progress=lambda _: None, stop=threading.Event())
            assert found is not None
            assert found.column("embedding").to_pylist() == [expected]
            assert said_of(found, COMPUTED_BY) == about
        found = pool.embed(MODEL, given, on_progress=lambda _: None, stop=threading.Event())
        assert found is not None
        assert found.column("embedding").to_pylist() == [kept[0].tolist()]
    finally:
        pool.close(0.0)


def test_prompts_and_limits_are_part_of_what_computes_a_vector() -> None:
    """Engines leave prompts out of their identity, and the remote one its limit."""
    about = hashing.load(MODEL.spec).describe()
    others = [
        replace(about, **more) for more in ({"prompts": {"": "query: "}}, {"max_tokens": 7}, {"streams": 9})
    ]
    assert [computed_by(one) == computed_by(about) for one in others] == [False, False, True]


def test_a_process_that_loaded_something_else_is_not_asked() -> None:
    """As when weights were replaced and a process died: a shard never mixes two models."""
    about = hashing.load(MODEL.spec).describe()

    class Replaced:
        """A process that came up after the model had changed."""

        def await_ready(self) -> object:
            """Return what it loaded."""
            return replace(about, identity="something else")

    class Lane:
        """Gives that process."""

        proven = True

        def process(self, _: object) -> Replaced:
            """Return it."""
            return Replaced()

    lane: Any = Lane()
    with pytest.raises(EngineTrouble, match="the model changed"):
        ShardWork(["text"], about, lane, threading.Event(), lambda _: None).run()
