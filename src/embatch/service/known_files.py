"""What is known of files by their names: those that were uploaded, and the results of batches from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embatch.batch import RESULTS, FileRecord, Page
from embatch.errors import NotFound, PermissionDenied
from embatch.service.uploads import file_id
from embatch.service.views import after, check_page_size, token

if TYPE_CHECKING:
    from embatch.store.records import BatchRecord
    from embatch.store.store import Store


@dataclass(frozen=True, slots=True)
class KnownFiles:
    """The files there are. What each method raises, `application.Service` says."""

    store: Store

    def get(self, name: str) -> FileRecord:
        """Return a file; the results of a file batch are one too, of unknown size."""
        id_ = file_id(name, "name")
        record = self._batch_of(id_)
        if record is None:
            return self.store.file(id_)
        end, kind = record.end_time or record.update_time, "application/jsonl"
        return FileRecord(id_, record.display_name, kind, 0, "", end, end, None, "GENERATED", "")

    def list(self, page_size: int, page_token: str | None) -> Page[FileRecord]:
        """Return one page of uploaded files, newest first."""
        check_page_size(page_size)
        records = self.store.files(page_size + 1, after(page_token))
        last = records[page_size - 1] if len(records) > page_size else None
        return Page(tuple(records[:page_size]), None if last is None else token(last.create_time, last.id))

    def batch_of(self, name: str) -> str:
        """Return the name of the batch whose results a `files/batch-{id}` stands for."""
        id_ = file_id(name, "name")
        record = self._batch_of(id_)
        if record is None:
            self.store.file(id_)
            raise PermissionDenied("uploaded files are not given out again", field="name")
        return f"batches/{record.id}"

    def _batch_of(self, id_: str) -> BatchRecord | None:
        """Return the final batch whose results a file is; `None` for other files."""
        if not id_.startswith(RESULTS):
            return None
        try:
            record = self.store.get(id_.removeprefix(RESULTS))
        except NotFound:
            return None
        return None if record.inline or not record.state.final else record
