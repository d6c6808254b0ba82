"""What a service that ended, however it ended, left behind.

For whoever owns database and blobs alone, before anybody works on them: to a second service beside a running
one, what that one is about to speak of would look left behind.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from embatch.errors import Unavailable
from embatch.service.attempt import kept_path
from embatch.store.times import micros

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.store.blobs import Blobs
    from embatch.store.spool import Spool
    from embatch.store.store import Store


def recover(store: Store, blobs: Blobs, spool: Spool) -> None:
    """Let claimed shards wait again and remove bytes that no row speaks of. Repeating is safe.

    Raises:
        Unavailable: the database cannot be read or written just now.
    """
    _collect_kept(store, blobs)
    store.release_all()
    _collect_blobs(store, blobs)
    _collect_uploads(store, spool)


def _collect_kept(store: Store, blobs: Blobs) -> None:
    """Remove what attempts left of shards that are done or stopped, and what no row came to speak of."""
    unspoken = [kept_path(*claimed) for claimed in store.claimed()]
    for_nobody = store.kept_for_nobody()
    with contextlib.suppress(OSError):  # as below
        for path in (*unspoken, *for_nobody):
            blobs.remove(path)
        if for_nobody:
            store.forget_kept()


def _collect_blobs(store: Store, blobs: Blobs) -> None:
    strays = list(blobs.strays(0.0))
    known = {f"batches/{id_}" for id_ in store.ids_of_batches()} | set(_file_paths(store))
    for stray in strays:
        if stray in known:
            continue
        kind, _, name = stray.partition("/")
        with contextlib.suppress(OSError):  # it only takes room: the next start tries again
            if kind == "batches":
                blobs.remove_batch(name)
            else:
                blobs.remove(stray)


def _collect_uploads(store: Store, spool: Spool) -> None:
    known = {upload.token for upload in store.uploads()}
    for token in spool.tokens():
        if token not in known:
            with contextlib.suppress(Unavailable):
                spool.drop(token)


def _file_paths(store: Store) -> Iterator[str]:
    after = None
    while page := store.files(1000, after):
        yield from (record.path for record in page)
        after = (micros(page[-1].create_time), page[-1].id)
