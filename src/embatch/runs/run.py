"""A run: a dataset embedded file to file over a client, block by block, each block one batch.

A block's rows are durable in the ledger before its batch is dropped from the service; the output is put
together from the ledger once every block is there, and appears whole. So the same command goes on wherever it
was stopped, embeds nothing twice that was committed, and writes the same bytes. A batch that was handed over
before the stop is found again by its idempotency key, a digest of the run, what is embedded and how.
"""

from __future__ import annotations

import hashlib
import math
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
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from embatch.runs.block_size import BlockSize
from embatch.runs.blocks import Blocks
from embatch.runs.checking import check_room, check_run
from embatch.runs.counts import Counts
from embatch.runs.detour import Detour
from embatch.runs.ending import Ending
from embatch.runs.flight import of_quota
from embatch.runs.handing_over import handover_of
from embatch.runs.identity import about, begun
from embatch.runs.in_flight import InFlight
from embatch.runs.intents import Fate
from embatch.runs.ledger import Ledger, PartLost, folder_of
from embatch.runs.locations import shown
from embatch.runs.output import Output
from embatch.runs.pacing import Pacing
from embatch.runs.steps import Step
from embatch.runs.verdict import verdict_of
from embatch.states import State

if TYPE_CHECKING:
    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.results import BatchResult
    from embatch.runs.options import EmbedOptions, RunOptions
    from embatch.runs.progress import Progress, RunProgress, Summary
    from embatch.runs.sources import Source

_REFUSALS: Final = (InvalidArgument, NotFound, PermissionDenied, Unauthenticated)
"""Errors of a submit after which the service holds nothing of it."""
_IDLE: Final = 1.0
"""Seconds between two questions whether more may be in flight, where nothing says when."""


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
    can = ForRuns(client).capabilities(embed_options.model)
    size = BlockSize.of(can, options.block_rows, embed_options.dimensions)
    what = about(client, source, embed_options, size.rows)
    first = begun(client, source, embed_options, size.bytes)
    unsaid = ("block rows",) if options.block_rows is None else ()
    folder = folder_of(place, options.data)
    output = Output(place, embed_options.dimensions, embed_options.dtype, source.ids)
    check_room(place, folder, None if can.idempotency_keys else source.rows, embed_options.dimensions)
    try:
        ledger = Ledger.open(folder, what, first, restart=options.restart, unsaid=unsaid)
        pacing = Pacing.of(client, can, options, price, ledger)
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
        self._verdict = verdict_of(client, ledger, embed_options, options, source.rows)
        self._capabilities = target_of(client).provider.capabilities
        self._many = self._capabilities.batches_in_flight is not None
        """Whether all that is in flight is asked for, and its rows lie on disk meanwhile."""
        self._pacing, self._flight = pacing, pacing.flight
        self._flying: dict[int, InFlight] = {}
        """The blocks that are handed over, by number, the oldest first."""
        self._doubtful: dict[int, InFlight] = {}
        """Those of which nobody knows whether they are."""
        self._again: list[InFlight] = []
        """Those of which that is known again."""
        self._left: list[int] = []
        """Numbers of those that are left to people."""
        self._clock = options.clock
        # A ledger from before the first call's words were kept has neither a token nor a display name.
        own = ledger.begun or output.place
        self._name = hashlib.sha256(orjson.dumps([ledger.about, own])).hexdigest()[:32]
        display_name = str(ledger.begun.get("display name") or embed_options.display_name or source.name)
        ledger.reached = self._reached = options.reached
        notes: list[str] = []
        run = self._name if options.cache else None
        self._handover = handover_of(client, ledger, embed_options, options, display_name, run, notes)
        self._detour = Detour(client, embed_options, ledger, pacing, self._handover)
        self._started = datetime.now(UTC)
        self._counts = Counts.of(source, ledger)
        self._blocks = Blocks(source, ledger, options, self._counts, output.place, BlockSize.kept(ledger))
        self._ending = Ending(client, ledger, output, options, self._counts, pacing, self._name, notes)
        self._asked = self._handed = False

    def go(self) -> Summary:
        self._output.check(self._ledger.model[1])
        self._handover.drop_last()
        if not all(map(self._verdict.sound, self._ledger.blocks.values())):
            self._ending.reject()
        while True:
            self._work()
            self._ending.check_left(self._left)
            try:
                return self._ending.finish()
            except PartLost:
                lost = self._ledger.lost
                if self._options.retry_failed or lost.keys() <= self._counts.again.keys():
                    raise
                self._counts.uncount(lost.values())

    def _work(self) -> None:
        """Have every block in the ledger that is not there yet, or shall be tried again."""
        todo, following, ended, first = self._blocks.todo(), None, False, True
        self._pacing.survey(self._blocks, self._ledger, self._options.budget)
        while True:
            now = self._clock.monotonic()
            apart = {*self._doubtful, *self._left}
            step = self._pacing.step(following, self._flying, apart, now)
            if self._again and (following is None or self._again[0].number < following.number):
                self._again += [] if following is None else [following]
                following = self._again.pop(0)
                continue
            unread = step.moved is not None and step.moved.key not in self._flying
            if following is None and not ended and (unread or self._flight.may_begin(0, now)):
                block = next(todo, None)
                ended = block is None
                following = block and InFlight.of(*block, self._ledger)
                continue
            if step.moved is not None or (following is not None and step.begun is not None):
                if first:
                    _, native = self._ledger.model  # refused before a text is sent
                    self._output.check(native or self._verdict.native())
                if step.moved is not None:
                    following = self._move(step.moved.key, following)
                elif following is not None and self._submit(following):
                    following = None
                if first:
                    self._verdict.prepare()
                first = False
                continue
            self._counts.exhausted |= ended
            if not self._flying and not self._doubtful and following is None and ended:
                return
            self._step(step.seconds)

    def forget(self, *, refused: bool) -> None:
        """Leave no ledger of a run that ended before a batch may have been accepted: it stands in the way.

        `refused`: the batch that was handed over last was not.
        """
        begun = self._handed if refused else self._asked
        paid = self._ledger.blocks or self._ledger.intents.open()
        if self._ledger.fresh and not begun and not paid:
            self._ledger.remove()

    def cancel(self) -> str:
        return self._handover.cancel()

    def close(self) -> None:
        """Leave batches and ledger where they are; drop what is half written."""
        self._output.abandon()
        self._ledger.close()

    def _submit(self, block: InFlight) -> bool:
        """Hand one block over as a batch, or find the batch that an earlier call made of it.

        Returns whether that is done with; if not, what is in flight has to become less.
        """
        if not self._pacing.begin(block):
            return False
        sent = block.sent(self._ledger)
        self._asked |= bool(sent.texts)
        batch = None
        if sent.texts:
            try:
                found = self._handover.batch(sent.number, sent.rows, sent.texts)
            except ResourceExhausted as error:
                self._pacing.refused(block, error)
                return False
            if isinstance(found, Fate):
                self._leave(block, found)
                return True
            batch = found
        self._handed |= batch is not None
        block.batch = batch
        skew = timedelta(seconds=target_of(self._client).clock_skew)
        if batch is not None and batch.create_time is not None and batch.create_time < self._started - skew:
            self._counts.resumed += block.rows
            block.found(batch)
        self._flying[block.number] = block
        self._pacing.begun(block)
        if self._many:
            block.park(self._ledger.parked(block.number))
        return True

    def _leave(self, block: InFlight, fate: Fate) -> None:
        """Have a block wait whose batch may be there or not, or leave it to people."""
        if fate is Fate.QUARANTINED:
            self._left.append(block.number)
            return
        self._doubtful[block.number] = block
        self._flight.begun(block.number, block.tokens, self._clock.monotonic())
        block.park(self._ledger.parked(block.number))
        self._tell_doubt()

    def _tell_doubt(self) -> None:
        if (doubt := self._handover.doubt()) is not None:
            self._progress(self._standing(doubt))

    # what comes back

    def _step(self, pause: float) -> None:
        """Wait for what is due next, and do it.

        `pause`: seconds after which there is something else to do; 0.0 or infinite where an end comes first.
        """
        now = self._clock.monotonic()
        watched = islice(self._flying.values(), None if self._many else 1)  # all, or the oldest
        block = min(watched, key=attrgetter("due"), default=None)
        asked = math.inf if block is None else block.due
        due = min(asked, self._handover.due, now + (pause or math.inf))
        if due > now:
            self._clock.sleep(due - now if due < math.inf else _IDLE)
        if self._handover.due <= due:
            self._look()
        elif block is not None and block.due <= due:
            self._ask(block)

    def _look(self) -> None:
        """Look for what is in doubt; what is settled is handed over, or found, next."""
        for number in self._handover.look():
            self._again = sorted([*self._again, self._doubtful.pop(number)], key=attrgetter("number"))
            self._flight.ended(number, self._clock.monotonic(), good=False)
        self._tell_doubt()

    def _ask(self, block: InFlight) -> None:
        """Ask for a batch, and commit its block if it has ended."""
        if block.polls == 0:
            self._counts.begin(block, self._ledger)
        block.polls += 1
        batch = block.batch
        if batch is not None:
            batch = block.polled = ForRuns(self._client).look(batch.name)
            self._pacing.looked(batch)
            wait = self._pacing.interval(block, len(self._ledger.blocks))
            block.due = self._clock.monotonic() + (early_interval(block.polls, wait) if self._many else wait)
            self._reached(Step.POLLED)
            self._progress(self._standing(batch))
        if batch is None or batch.done:
            self._collect(block, batch)

    def _collect(self, block: InFlight, batch: Batch | None) -> None:
        """Read what a batch gave that has ended, make its rows durable, and drop it."""
        self._reached(Step.ENDED)
        if batch is not None and batch.state is State.FAILED:
            self._handover.over(block.number, batch)
            if not of_quota(batch):
                raise BatchFailed(f"{batch.name} failed: {batch.error or 'the service gave no reason'}")
            self._fly_again(block, batch)
            return
        result = None
        if batch is not None:
            result = self._client.get_batch_embeddings(batch, partial=True)
            self._reached(Step.FETCHED)
        self._pacing.ended(block, batch, result)
        self._commit(block, batch, result)
        if batch is not None:
            self._handover.drop(batch)

    def _commit(self, block: InFlight, batch: Batch | None, result: BatchResult | None) -> None:
        """Make the rows of a block durable. Raises DataLoss where they are not sound."""
        sent = block.sent(self._ledger)
        if result is not None:
            sent.part.fill(sent.places, result)
            self._output.check(sent.part.vectors.shape[1])
        done = self._verdict.block(sent, batch, result)
        sound = self._verdict.sound(done)
        if sound and self._output.direct:
            self._output.write(done, sent.part)
        self._counts.tally.add(self._ledger.commit(done, sent.part.record()))
        self._flying.pop(block.number, None)
        if batch is not None:
            self._progress(self._standing(batch, settled=True))
        if not sound:
            self._flying.clear()
            self._ending.reject()

    def _fly_again(self, block: InFlight, batch: Batch) -> None:
        """Have a block handed over again whose batch was accepted, and then had no room in the quota."""
        del self._flying[block.number]
        block.forget_batch()
        self._again = sorted([*self._again, block], key=attrgetter("number"))
        self._pacing.refused(block, ResourceExhausted(batch.error or "the quota had no room for the batch"))
        self._progress(self._standing(batch))

    def _move(self, number: int, following: InFlight | None) -> InFlight | None:
        """Embed a block at once whose batch is not back in time, unless it comes back that moment.

        It may be the one that is handed over next: returns that one, if it is still to be.
        """
        block = self._flying.get(number) or following
        if block is None:
            return None
        if not block.polls:
            self._counts.begin(block, self._ledger)

        def show(part: Batch) -> None:
            self._flying[block.number] = block
            block.polled, block.polls = part, block.polls + 1
            self._progress(self._standing(part))

        batch, result = self._detour.go(block, show)
        self._commit(block, batch, result)
        if batch.name:
            self._handover.drop(batch)
        return None if block is following else following

    def _standing(self, batch: Batch, *, settled: bool = False) -> RunProgress:
        working = [block for block in self._flying.values() if block.polls]
        said = self._pacing.notes()
        return self._counts.standing(batch, working, self._handover.handed, settled=settled, said=said)
