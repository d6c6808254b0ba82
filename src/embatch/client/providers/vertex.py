"""Vertex AI, now the Gemini Enterprise Agent Platform: batch prediction jobs over a bucket.

A batch is a job. Its requests are staged as a file of JSONL, under a name that says whose they are and how
many; its results are read from wherever the job says that it put them. A job's name is long and holds the
project's number, so a batch is named `batches/{number}` after its last part.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Final

from embatch.batch import BatchStats, Model, Page
from embatch.client import readers
from embatch.client.calls import SLOW, Alternative, Call, Exchange, work
from embatch.client.fingerprint import SEPARATOR, in_name, unmarked
from embatch.client.fingerprint import fingerprint as fingerprint_of
from embatch.client.providers import vertex_lines, vertex_regions, vertex_results, vertex_staging
from embatch.client.providers.late_results import awaited
from embatch.client.providers.prompts import prompted
from embatch.client.providers.provider import Provider
from embatch.client.providers.vertex_staging import Bucket
from embatch.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound
from embatch.states import State
from embatch.vectors import ContentEmbedding, unit
from embatch.wire.google import read_errors
from embatch.wire.vertex import read_responses, routes, storage, write_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from embatch.batch import Batch, Request
    from embatch.client.calls import Flow, Reply, Sender
    from embatch.client.providers.provider import Capabilities, RequestWriter, Target
    from embatch.client.providers.vertex_regions import Regions
    from embatch.client.results import BatchResult
    from embatch.client.upload import FileUpload
    from embatch.errors import EmbatchError
    from embatch.wire.google.rows import ResponseRow
    from embatch.wire.vertex.read_responses import Job

VERTEX_MODEL: Final = "gemini-embedding-001"
LABEL: Final = "embatch"
"""Label of a job that has a fingerprint, which is its value."""
_DISPLAY_NAME: Final = 128
"""Most characters of a job's display name."""
_FORM: Final = re.compile("[a-z2-7]{32}")
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Vertex(Provider):
    """One project in one location, and the bucket that its batches go through."""

    place: routes.Place = field(kw_only=True)
    staging: vertex_staging.Place | None = field(kw_only=True)
    """`None` where the caller named none: batches can be looked at then, and none be submitted."""
    emulator: str | None = field(default=None, kw_only=True)
    """Address of an emulator of Cloud Storage; `None` for the service."""
    regions: Regions = field(default=vertex_regions.DEFAULT, kw_only=True)

    @property
    def account(self) -> Mapping[str, str]:
        """Say whose the jobs are and where they run."""
        return {"project": self.place.project, "location": self.place.location}

    def capabilities_of(self, model: str | None) -> Capabilities:
        """Return the limits of a model: the older ones take fewer requests in a job."""
        most = vertex_lines.most_requests(model or VERTEX_MODEL)
        return replace(self.capabilities, file_requests=most)

    def sign(self, key: str | None) -> Mapping[str, str]:  # noqa: ARG002
        """Return nothing: there are no keys, and the target's credential signs."""
        return {}

    def read_error(self, reply: Reply) -> EmbatchError:
        """Read Google's envelope, or what a proxy put in its place."""
        error = read_errors.parse_error(reply.status, reply.headers, reply.body, reply.via)
        return AlreadyExists(error.message) if reply.status == storage.EXISTS else error

    def bucket(self, name: str) -> Bucket:
        """Return a bucket to speak to."""
        return Bucket(self.emulator or storage.ADDRESS, name, signed=self.emulator is None)

    def not_served(self, sender: Sender, target: Target, model: str, error: NotFound) -> Flow[NotFound]:  # noqa: ARG002
        """Say where the model is known to be served, if not here."""
        yield from ()
        note = self.regions.note(model, self.place.location)
        if note is None:
            return error
        return NotFound(f"{error.message}; {note}", field="model", reason=error.reason)

    # requests on their way out

    def as_sent(self, model: str | None, request: Request) -> Request:
        """Write task and title into the text for a model that reads nothing else."""
        (asked,) = prompted(model, [request])
        return asked

    def writer(self, file: BinaryIO, model: str | None) -> RequestWriter:
        """Write what will be staged. Raises InvalidArgument where there is no bucket to stage it in."""
        self._staged()
        return vertex_lines.StagedLines(file, model or VERTEX_MODEL)

    def _staged(self) -> vertex_staging.Place:
        if self.staging is None:
            raise InvalidArgument(
                "a batch on vertex goes through a bucket of yours: give staging=gs://bucket/folder or "
                f"--staging, or set {vertex_staging.STAGING}",
                field="staging",
            )
        return self.staging

    def upload(self, sender: Sender, upload: FileUpload) -> Flow[str]:
        """Stage the requests in a folder of their own; what is there already is not sent again."""
        staging = self._staged()
        folder = staging.folder(upload.fingerprint, fingerprint_of(sender.outside.token()))
        bucket = self.bucket(staging.bucket)
        rows, kept = yield from work(partial(vertex_lines.looked_at, upload.file))
        name = f"{folder}{vertex_staging.REQUESTS}-{rows}.jsonl"
        if not kept:
            yield from bucket.put(sender, name, upload.file)
        else:
            with tempfile.TemporaryFile(prefix="embatch-") as instances:
                yield from work(partial(vertex_lines.write_instances, upload.file, instances))
                yield from bucket.put(sender, f"{folder}{vertex_staging.KEPT}-{rows}.jsonl", upload.file)
                yield from bucket.put(sender, name, instances)
        return f"gs://{staging.bucket}/{name}"

    def inline_body(self, model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
        """Nothing goes inline."""
        raise NotImplementedError

    def file_body(self, model: str, display_name: str, priority: int, file: str) -> bytes:  # noqa: ARG002
        """Describe the job of a staged file: its fingerprint stands in its name and in a label."""
        bucket, name = storage.bucket_and_name(file)
        words, mark = unmarked(display_name)
        behind = "" if mark is None else f"{SEPARATOR}{mark}"
        return write_requests.job_body(
            words[: _DISPLAY_NAME - len(behind)] + behind,
            routes.model_resource(model),
            file,
            f"gs://{bucket}/{name.rpartition('/')[0]}/{vertex_staging.RESULTS}/",
            {} if mark is None else {LABEL: mark},
        )

    def create(
        self,
        model: str,  # noqa: ARG002
        body: bytes,
        idempotency_key: str | None,  # noqa: ARG002
        run: str | None,  # noqa: ARG002
    ) -> Exchange[Batch]:
        """Create the job."""
        return Exchange(Call("POST", self.place.jobs(), headers=_JSON, body=body), self._read_batch)

    # batches

    def job(self, name: str) -> Exchange[Job]:
        """Ask for a job."""
        return Exchange(Call("GET", self.place.job(_number(name))), read_responses.parse_job)

    def status(self, name: str) -> Exchange[Batch]:
        """Ask for a job, as a batch."""
        return Exchange(self.job(name).call, self._read_batch)

    def _read_batch(self, body: bytes) -> Batch:
        return self.shown(read_responses.parse_job(body))

    def shown(self, job: Job) -> Batch:
        """Return a job as the batch that its user knows."""
        batch = job.batch
        words, mark = unmarked(batch.display_name or "")
        label = job.labels.get(LABEL, "")
        note = self.regions.note(batch.model.removeprefix("models/"), self.place.location)
        return replace(
            batch,
            display_name=words or None,
            fingerprint=label if _FORM.fullmatch(label) else mark or in_name(job.source),
            batch_stats=_counted(batch.batch_stats, vertex_staging.rows_of(job.source), batch.state),
            notes=() if note is None else (note,),
        )

    def batches(self, size: int | None, token: str | None) -> Exchange[Page[Batch]]:
        """Ask for a page of jobs. Those of models that do not embed are left out: a page may be empty."""
        query = {} if size is None else {routes.PAGE_SIZE: str(size)}
        if token is not None:
            query[routes.PAGE_TOKEN] = token
        return Exchange(Call("GET", self.place.jobs(), query), self._read_batches)

    def _read_batches(self, body: bytes) -> Page[Batch]:
        jobs, token = read_responses.parse_jobs(body)
        batches = map(self.shown, jobs)
        return Page(tuple(one for one in batches if "embedding" in one.model or one.fingerprint), token)

    def update(self, name: str, display_name: str | None, priority: int | None) -> Exchange[Batch]:  # noqa: ARG002
        """Refuse: Vertex changes nothing of a job."""
        raise InvalidArgument(
            "vertex changes neither name nor priority of a batch once it is submitted", field="display_name"
        )

    def cancel(self, name: str) -> Call:
        """Stop a job; the answer is empty."""
        return Call("POST", self.place.job(_number(name), routes.CANCEL))

    def delete(self, name: str) -> Call:
        """Delete a job; the answer is an operation, which nobody need wait for."""
        return Call("DELETE", self.place.job(_number(name)))

    def clean_up(self, sender: Sender, batch: Batch) -> Flow[None]:
        """Delete what was staged for it, and its results, where they lie in a folder of ours.

        Where a submit whose answer was lost made two jobs of one folder, each takes its own results with it,
        and the last one the rest.
        """
        staged = vertex_staging.folder_of(batch.input_file)
        if staged is None:
            return
        bucket, folder = staged
        if (yield from self._is_shared(sender, batch)):
            output = (yield from sender.ask(self.job(batch.name))).output
            if output is None or not output.startswith(f"gs://{bucket}/{folder}"):
                return
            _, folder = vertex_results.folder(output)
        yield from self.bucket(bucket).remove(sender, folder)

    def _is_shared(self, sender: Sender, batch: Batch) -> Flow[bool]:
        """Whether another job has the same mark and reads the same file."""
        query = {routes.FILTER: routes.labelled(LABEL, batch.fingerprint or "")}
        token: str | None = None
        while batch.fingerprint is not None:
            call = Call("GET", self.place.jobs(), query)
            jobs, token = read_responses.parse_jobs((yield from sender.send(call)).body)
            if any(job.source == batch.input_file and job.batch.name != batch.name for job in jobs):
                return True
            if token is None or token == query.get(routes.PAGE_TOKEN):
                break
            query = {**query, routes.PAGE_TOKEN: token}
        return False

    def discard(self, sender: Sender, name: str) -> Flow[None]:
        """Delete what was staged for a finished job, then the job: a repeat finds what is left by the job."""
        batch = yield from sender.ask(self.status(name))
        if not batch.done:
            raise FailedPrecondition(f"{name} still runs ({batch.state}): cancel it first")
        yield from self.clean_up(sender, batch)
        yield from sender.send(self.delete(name))

    def results(self, sender: Sender, batch: Batch, dimensions: int | None) -> Flow[BatchResult]:
        """Read all files of the job's folder, which can be there later than its state says."""
        job = yield from sender.ask(self.job(batch.name))
        described = self.shown(job)
        read = partial(self._rows, sender, described)
        rows = yield from awaited(sender, described, read, gaps=job.partial)
        return (yield from work(partial(readers.from_rows, described, rows, dimensions)))

    def _rows(self, sender: Sender, batch: Batch, after: float) -> Flow[list[ResponseRow] | None]:
        """Read what there is of results now; `None`: nothing."""
        asked = self.job(batch.name)
        job = yield from sender.ask(replace(asked, call=replace(asked.call, after=after)))
        if job.output is None:
            return None
        bucket_name, folder = vertex_results.folder(job.output)
        bucket, count = self.bucket(bucket_name), batch.batch_stats.request_count
        files = vertex_results.output_files((yield from bucket.list(sender, folder)))
        lines = yield from vertex_results.read_lines(sender, bucket, files, count)
        kept, staged = None, vertex_staging.folder_of(job.source)
        if staged is not None and any(line.instance is not None for line in lines):
            name = f"{staged[1]}{vertex_staging.KEPT}-{vertex_staging.rows_of(job.source)}.jsonl"
            kept = yield from vertex_results.read_kept(sender, self.bucket(staged[0]), name, count)
        return (yield from work(partial(vertex_results.keyed, lines, kept, count)))

    # at once

    @property
    def known_models(self) -> tuple[Model, ...]:
        """The models of the table of regions, the default one first."""
        places = self.regions.served.items()
        return tuple(Model(f"models/{name}", name, ", ".join(where), None) for name, where in places)

    def models(self, size: int | None, token: str | None) -> Exchange[Page[Model]]:
        """Nobody is asked: see `known_models`."""
        raise NotImplementedError

    def embed(self, model: str, request: Request) -> Exchange[ContentEmbedding]:
        """Embed one text, at length 1; a model that has no path of its own is asked by the older one."""
        asked = self.as_sent(model, request)
        many = self._predict(model, [asked])
        older = Exchange(many.call, lambda body: _one(many.read(body)))
        if write_requests.is_legacy(model):
            return older
        call = self._at_once(model, routes.EMBED, write_requests.embed_body(asked))
        instead = Alternative((older,), lambda found: found[0])
        return Exchange(call, lambda body: _unit(read_responses.parse_embedding(body)), instead)

    def embed_many(self, model: str, requests: Sequence[Request]) -> Exchange[list[ContentEmbedding]]:
        """Embed a few texts, each at length 1: one by one where the model does not take several."""
        if write_requests.is_legacy(model):
            return self._predict(model, prompted(model, requests))
        body = write_requests.embed_many_body(prompted(model, requests))
        singly = Alternative(tuple(map(_listed, (self.embed(model, one) for one in requests))), _joined)
        read = _units(read_responses.parse_embeddings)
        return Exchange(self._at_once(model, routes.EMBED_MANY, body), read, singly)

    def _predict(self, model: str, requests: Sequence[Request]) -> Exchange[list[ContentEmbedding]]:
        if len({one.output_dimensionality for one in requests}) > 1:
            raise InvalidArgument(
                f"{model} embeds the texts of one call at one output_dimensionality: give all the same",
                field="requests",
            )
        body = write_requests.predict_body(requests)
        return Exchange(self._at_once(model, routes.PREDICT, body), _units(read_responses.parse_predictions))

    def count_tokens(self, model: str, texts: Sequence[str]) -> Exchange[int]:
        """Count tokens."""
        body = write_requests.count_body(model, texts)
        return Exchange(self._at_once(model, routes.COUNT_TOKENS, body), read_responses.parse_count)

    def _at_once(self, model: str, verb: str, body: bytes) -> Call:
        return Call("POST", self.place.model(model, verb), headers=_JSON, body=body, patience=SLOW)


def _listed(one: Exchange[ContentEmbedding]) -> Exchange[list[ContentEmbedding]]:
    """Return the same, in a list of one."""
    instead = one.instead
    return Exchange(
        one.call,
        lambda body: [one.read(body)],
        None if instead is None else Alternative(tuple(map(_listed, instead.exchanges)), _joined),
    )


def _joined(found: Sequence[list[ContentEmbedding]]) -> list[ContentEmbedding]:
    return [*chain.from_iterable(found)]


def _unit(embedding: ContentEmbedding) -> ContentEmbedding:
    return ContentEmbedding(unit(embedding.values))


def _units(read: Callable[[bytes], list[ContentEmbedding]]) -> Callable[[bytes], list[ContentEmbedding]]:
    return lambda body: [*map(_unit, read(body))]


def _one(found: list[ContentEmbedding]) -> ContentEmbedding:
    if len(found) != 1:
        raise Internal(f"one text came back as {len(found)} embeddings")
    return found[0]


def _number(name: str) -> str:
    return name.removeprefix("batches/")


def _counted(stats: BatchStats, rows: int, state: State) -> BatchStats:
    """Return the counts of a job whose file has so many requests; 0 where nobody knows."""
    total = rows or stats.request_count
    good = min(total, stats.successful_request_count)
    if state.final:
        if not stats.request_count and state is State.COMPLETED:  # the service did not count
            good = total
        return BatchStats(total, good, total - good, 0)
    failed = min(total - good, stats.failed_request_count)
    return BatchStats(total, good, failed, total - good - failed)
