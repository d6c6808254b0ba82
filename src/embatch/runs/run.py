"""A run: a dataset embedded file to file over a client, block by block, each block one batch.

A block's rows are durable in the ledger before its batch is dropped from the service; the output is put
together from the ledger once every block is there, and appears whole. So the same command goes on wherever it
was stopped, embeds nothing twice that was committed, and writes the same bytes. A batch that was handed over
before the stop is found again by its idempotency key, a digest of the run, what is embedded and how.
"""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import orjson
import pyarrow as pa

from embatch.backoff import early_interval
from embatch.client.base import target_of
from embatch.client.for_runs import ForRuns
from embatch.errors import (
    BatchFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from embatch.runs.adoption import Adoption
from embatch.runs.at_once import AtOnce
from embatch.runs.blocks import Blocks
from embatch.runs.checking import check_run
from embatch.runs.counts import Counts
from embatch.runs.ending import Ending
from embatch.runs.flight import of_quota
from embatch.runs.identity import about, begun
from embatch.runs.in_flight import InFlight
from embatch.runs.ledger import Ledger, PartLost, folder_of
from embatch.runs.locations import shown
from embatch.runs.output import Output
from embatch.runs.pacing import Pacing
from embatch.runs.verdict import verdict_of
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.runs.options import EmbedOptions, RunOptions
    from embatch.runs.progress import Progress, RunProgress, Summary
    from embatch.runs.sources import Rows, Source

_REFUSALS: Final = (InvalidArgument, NotFound, PermissionDenied, Unauthenticated)
"""Errors of a submit after which the service holds nothing of it."""
_LONGEST_SLEEP: Final = 3600.0
"""Seconds after which a run that waits looks round, whatever it waits for."""


def embed_dataset(
    client: Client,
    source: Source,
    place: str,
    embed_options: EmbedOptions,
    options: RunOptions,
    progress: Progress,
) -> Summary:
    """Embed every row of a source into one output, in order; return what was done.

    Repeating is safe and goes on with unfinished work; a finished run is only written out again. Durable on
    return; each batch is dropped from the service once its rows are in the ledger. Interrupted or killed, the
    ledger (`OUT.embatch`) keeps what is finished and the service what it was handed; what of it is missing or
    damaged is embedded again. When rows failed that another try can change the ledger stays, for
    `retry_failed`.

    Args:
        client: where the texts are embedded.
        source: the rows.
        place: path or address of the output; see `sinks`.
        embed_options: what shall be done with every row.
        options: how.
        progress: told with every poll.

    Raises:
        InvalidArgument: the source, the place or a wish is wrong, or the place is within the source; nothing
            was written.
        FailedPrecondition: another process writes this output, there is nothing to retry, or the model
            changed since the run began, or a block was handed over before as another batch.
        DataLoss: the vectors are not what the reference path gives: they stand in `OUT.rejected`; or the
            ledger is damaged.
        BatchFailed: a batch as a whole could not be worked.
        Unavailable: a disk or a store failed or is full; repeating goes on.
    """
    price = check_run(client, source, place, embed_options, options)
    what, first = about(client, source, embed_options, options.block_rows), begun(source, embed_options)
    folder = folder_of(place, options.data)
    output = Output(place, embed_options.dimensions, embed_options.dtype, source.ids)
    try:
        ledger = Ledger.open(folder, what, first, restart=options.restart)
        pacing = Pacing.of(client, options, price, ledger)
        run = _Run(client, source, ledger, output, embed_options, options, progress, pacing)
        try:
            output.check_ids(ledger)
            return run.go()
        except BaseException as error:
            if options.cancel_on_interrupt and isinstance(error, KeyboardInterrupt):
                error.add_note(run.cancel())
            run.forget(refused=isinstance(error, _REFUSALS))
            raise
        finally:
            run.close()
    except (OSError, pa.ArrowException) as error:
        raise Unavailable(
            f"{shown(place)} is not finished: {error}. What was embedded is kept in {folder}: once that is "
            "mended or there is room again, the same command goes on"
        ) from None


class _Run:
    def __init__(  # noqa: PLR0913, PLR0917  (the parts of a run, put together in one place)
        self,
        client: Client,
        source: Source,
        ledger: Ledger,
        output: Output,
        embed_options: EmbedOptions,
        options: RunOptions,
        progress: Progress,
        pacing: Pacing,
    ) -> None:
        self._client, self._ledger, self._output = client, ledger, output
        self._options, self._progress = options, progress
        self._verdict = verdict_of(client, ledger, embed_options, options)
        self._capabilities = target_of(client).provider.capabilities
        self._pacing = pacing
        self._flying: dict[int, InFlight] = {}
        """The blocks that are handed over, by number, the oldest first."""
        self._waiting: deque[InFlight] = deque()
        """Blocks that are read and not handed over, in their order."""
        self._clock = options.clock
        # A ledger from before the first call's words were kept has neither a token nor a display name.
        own = ledger.begun or output.place
        self._name = hashlib.sha256(orjson.dumps([ledger.about, own])).hexdigest()[:32]
        display_name = str(ledger.begun.get("display name") or embed_options.display_name or source.name)
        self._adoption = Adoption(
            client, ledger, embed_options, display_name, self._name if options.cache else None
        )
        self._started = datetime.now(UTC)
        self._counts = Counts.of(source, ledger)
        self._blocks = Blocks(source, ledger, options, self._counts, output.place)
        self._ending = Ending(client, ledger, output, options, self._counts, pacing, self._name)
        dimensions = (
            None if self._capabilities.native_results else max(embed_options.dimensions, default=None)
        )
        self._at_once = AtOnce(client, embed_options, dimensions, self._clock)
        self._asked = self._handed = False

    def go(self) -> Summary:
        self._output.check(self._ledger.model[1])
        self._drop_last()
        if not all(map(self._verdict.sound, self._ledger.blocks.values())):
            self._ending.reject()
        while True:
            self._work()
            try:
                return self._ending.finish()
            except PartLost:
                lost = self._ledger.lost
                if self._options.retry_failed or lost.keys() <= self._counts.again.keys():
                    raise
                self._counts.uncount(lost.values())

    def _work(self) -> None:
        """Have every block in the ledger that is not there yet, or shall be tried again."""
        todo, ended, first = self._blocks.todo(), False, True
        self._pacing.survey(InFlight.of(*block, self._ledger) for block in self._survey())
        while True:
            now = self._clock.monotonic()
            step = self._pacing.step(self._waiting[0] if self._waiting else None, self._flying, now)
            wanted = step.moved is not None and step.moved.key not in self._flying
            if not (self._waiting or ended) and (wanted or self._pacing.flight.may_begin(0, now)):
                block = next(todo, None)
                ended = block is None
                self._waiting += [] if block is None else [InFlight.of(*block, self._ledger)]
                continue
            if step.moved is not None or step.begun is not None:
                if first:
                    self._check_target()
                if step.moved is not None:
                    self._move(self._flying.get(step.moved.key) or self._waiting.popleft())
                elif self._submit(self._waiting[0]):
                    self._waiting.popleft()
                if first:
                    self._verdict.prepare()
                first = False
                continue
            self._counts.exhausted |= ended
            if not self._flying and not self._waiting:
                return
            self._step(step.seconds)

    def _survey(self) -> Iterator[tuple[int, Rows]]:
        """Yield what is to be done, without counting it as read."""
        counts = Counts.of(self._counts.source, self._ledger)
        return replace(self._blocks, counts=counts).todo()

    def _check_target(self) -> None:
        """Refuse what the target cannot do, before a text is sent. Raises InvalidArgument."""
        _, native = self._ledger.model
        self._output.check(native or self._verdict.native())

    def forget(self, *, refused: bool) -> None:
        """Leave no ledger of a run that ended before it began: it would stand in another one's way.

        It begins where a batch may have been accepted: its key is in the ledger. `refused`: it was not.
        """
        begun = self._handed if refused else self._asked
        if self._ledger.fresh and not begun and not self._ledger.blocks:
            self._ledger.remove()

    def _drop_last(self) -> None:
        """Drop the batch whose rows were committed just before an earlier call was stopped."""
        last = self._ledger.last
        if last is not None and last.batch:
            with suppress(NotFound):
                self._client.delete_batch(last.batch)

    def cancel(self) -> str:
        return self._adoption.cancel()

    def close(self) -> None:
        """Leave batches and ledger where they are; drop what is half written."""
        self._output.abandon()
        self._ledger.close()

    def _submit(self, block: InFlight) -> bool:
        """Hand one block over as a batch, or find the batch that an earlier call made of it.

        Returns whether it is handed over; if not, what is in flight has to become less.
        """
        sent = block.sent
        if not self._pacing.begin(block):
            return False
        self._asked |= bool(sent.texts)
        try:
            batch = self._adoption.batch(sent.number, sent.rows, sent.texts) if sent.texts else None
        except ResourceExhausted as error:
            self._pacing.refused(block, error)
            return False
        self._handed |= batch is not None
        sent.batch = batch
        skew = timedelta(seconds=target_of(self._client).clock_skew)
        if batch is not None and batch.create_time is not None and batch.create_time < self._started - skew:
            self._counts.resumed += len(sent.rows.texts)
            block.found(batch)
        self._flying[sent.number] = block
        self._pacing.begun(block)
        return True

    # what comes back

    def _watched(self) -> list[InFlight]:
        """Return the blocks whose batches are asked for: all of them, or the oldest."""
        every = self._capabilities.batches_in_flight is not None
        return list(self._flying.values()) if every else list(islice(self._flying.values(), 1))

    def _step(self, pause: float) -> None:
        """Ask for the batch that is due next, and commit its block if it has ended.

        `pause`: seconds after which there may be something else to do, if that comes first; 0.0 or infinite
        where nothing is.
        """
        now = self._clock.monotonic()
        block = min(self._watched(), key=attrgetter("due"), default=None)
        due = now + pause if block is None else block.due
        if (pause and now + pause < due) or block is None:
            self._clock.sleep(min(pause, _LONGEST_SLEEP))
            return
        if due > now:
            self._clock.sleep(due - now)
        if block.polls == 0:
            self._begin(block)
        block.polls += 1
        batch = block.sent.batch
        if batch is not None:
            batch = block.polled = ForRuns(self._client).look(batch.name)
            self._pacing.looked(batch)
            block.due = self._clock.monotonic() + self._interval(block)
            self._progress(self._standing(batch))
        if batch is None or batch.done:
            self._collect(block, batch)

    def _begin(self, block: InFlight) -> None:
        """Count what an earlier call finished of a block, or of the try before."""
        earlier = self._ledger.blocks.get(block.sent.number)
        if earlier is not None:
            self._counts.tally.take(earlier)
        rows, tokens = self._counts.earlier
        self._counts.earlier = (rows + block.earlier[0], tokens + block.earlier[1])

    def _interval(self, block: InFlight) -> float:
        wait = self._pacing.interval(block, len(self._ledger.blocks))
        return wait if self._capabilities.batches_in_flight is None else early_interval(block.polls, wait)

    def _collect(self, block: InFlight, batch: Batch | None) -> None:
        """Read what a batch that has ended gave, have its block committed, and drop the batch."""
        result = None
        if batch is not None:
            if of_quota(batch):
                self._again(block, batch)
                return
            if batch.state is State.FAILED:
                raise BatchFailed(f"{batch.name} failed: {batch.error or 'the service gave no reason'}")
            result = self._client.get_batch_embeddings(batch, partial=True)
        self._pacing.ended(block, batch, result)
        self._commit(block, batch, result)
        if batch is not None:
            self._adoption.drop(batch)

    def _commit(self, block: InFlight, batch: Batch | None, result: BatchResult | None) -> None:
        """Make the rows of a block durable, if they are sound. Raises DataLoss if they are not."""
        sent = block.sent
        if result is not None:
            sent.part.fill(sent.places, result)
            self._output.check(sent.part.vectors.shape[1])
        done = self._verdict.block(sent, batch, result)
        sound = self._verdict.sound(done)
        if sound and self._output.direct:
            self._output.write(done, sent.part)
        self._counts.tally.add(self._ledger.commit(done, sent.part.record()))
        self._flying.pop(sent.number, None)
        if batch is not None:
            self._progress(self._standing(batch, settled=True))
        if not sound:
            self._flying.clear()
            self._ending.reject()

    def _again(self, block: InFlight, batch: Batch) -> None:
        """Have a block handed over again whose batch was accepted and then had no room in the quota."""
        del self._flying[block.sent.number]
        self._adoption.drop(batch)
        block.sent.batch = block.polled = None
        block.due, block.polls = 0.0, 0
        self._waiting = deque(sorted([*self._waiting, block], key=lambda one: one.sent.number))
        self._pacing.refused(block, ResourceExhausted(batch.error or "the batch failed for want of quota"))
        self._progress(self._standing(batch))

    def _move(self, block: InFlight) -> None:
        """Embed a block at once, whose batch is not back in time, unless it just came back."""
        sent, batch = block.sent, block.sent.batch
        if batch is not None:
            batch = self._client.cancel_batch(batch.name)
            if batch.state is State.COMPLETED:
                block.polled = batch
                self._collect(block, batch)
                return
        tokens, began = self._pacing.move(block, batch), self._clock.monotonic()
        self._flying[sent.number] = block
        nameless, result = self._at_once.embed(
            sent.texts, tokens, lambda part: self._progress(self._shown(block, part))
        )
        self._pacing.moved(block, result, self._clock.monotonic() - began)
        self._commit(block, nameless, result)
        if batch is not None:
            with suppress(FailedPrecondition, NotFound):  # one that is being cancelled goes by itself
                self._adoption.drop(batch)

    def _shown(self, block: InFlight, part: Batch) -> RunProgress:
        block.polled, block.polls = part, block.polls + 1
        return self._standing(part)

    def _standing(self, batch: Batch, *, settled: bool = False) -> RunProgress:
        working = [block for block in self._flying.values() if block.polls]
        return self._counts.standing(
            batch, working, self._adoption.handed, settled=settled, said=self._pacing.notes()
        )
