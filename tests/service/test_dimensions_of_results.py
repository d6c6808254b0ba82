"""Results of requests that asked for dimensions which nothing stored has."""

from __future__ import annotations

import io
from dataclasses import replace

import pyarrow as pa
import pytest
from service_rig import MODEL, Rig, large

from embatch.engine.models import Catalog
from embatch.service.intake import Draft
from embatch.wire.arrow.write_results import results_stream

pytest_plugins = ("rig_fixture",)


@pytest.mark.parametrize("promised", [None, 8, 999])
def test_a_batch_without_a_vector_is_read_in_what_was_asked_for(rig: Rig, promised: int | None) -> None:
    """Cancelled before anything was embedded, of a model whose dimensions nobody knows now."""
    rig.restart(Catalog([replace(MODEL, dimensions=promised)]))
    rig.pool.gated = True
    name = rig.service.submit_inline(Draft(), [replace(row, dimensions=6) for row in large(2)]).name
    rig.service.cancel(name)
    rig.restart(Catalog([replace(MODEL, dimensions=None)]))
    found = rig.service.results(name)
    with pa.ipc.open_stream(
        io.BytesIO(b"".join(results_stream(found.parts, found.native, found.dimensions, "float32")))
    ) as stream:
        table = stream.read_all()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 6)
    assert table.column("embedding").null_count == table.num_rows == 16
