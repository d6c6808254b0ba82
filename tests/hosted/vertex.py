"""Vertex AI on 127.0.0.1, with Cloud Storage and OAuth at the same address; imports nothing of what it tests.

    with VertexStandIn(Behaviour(seed=7, output_files=3, ends=("PARTIALLY_SUCCEEDED",))) as google:
        google.storage.write("in.jsonl", lines)       # clients of it: STORAGE_EMULATOR_HOST=google.url
        client = Client("vertex", project=google.project, location="us-central1", base_url=google.url)
        google.tokens.issue()            # a token; or a file for google-auth: google.service_account()
        google.tokens.expire()           # every token is old: who refreshes goes on
    assert google.creates == 1

The bucket is `gs://stand-in-bucket`. Routes, for `Fault` and `calls`: `create status list cancel delete`,
`embed embed_many predict count_tokens`, `token`, `unknown`, and of Cloud Storage `storage.upload` (a whole
object, or the start of a resumable upload), `storage.chunk storage.query storage.read storage.object`,
`storage.list storage.delete storage.other`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
from hosted import jobs
from hosted.batch_service import BatchService, served
from hosted.cloud_storage import Emulator, split, storage_route
from hosted.gemini_shapes import page_token, read_page_token
from hosted.jobs import Job
from hosted.moment import stamp
from hosted.oauth import Tokens, service_account, workload_identity
from hosted.replies import Refused, Reply, say
from hosted.requests_in import CONFIG, a_list, fields, read_content, read_json
from hosted.vectors import EMBEDDERS, tokens
from hosted.vertex_rows import configured, instance_line, keyed_line, prediction, read_rows

if TYPE_CHECKING:
    from hosted.behaviour import Behaviour
    from hosted.http_server import Ask
    from hosted.moment import Clock
    from hosted.results import Result
    from hosted.vectors import Vectors

PROJECT = "stand-in-project"
NUMBER = "123456789012"
"""The project as the names of its jobs have it."""
BUCKET = "stand-in-bucket"
WHERE = {
    "gemini-embedding-001": {
        *("us-central1", "us-east1", "us-east4", "us-west1", "us-west4", "europe-west1", "europe-west4")
    },
    "gemini-embedding-2": {"global", "us", "eu"},
}
_LIFE_SECONDS = 72 * 3600.0
_JOB = {"displayName", "model", "inputConfig", "outputConfig", "labels"}
_PATH = re.compile(r"/(v1|v1beta1)/projects/([^/]+)/locations/([^/]+)/(.+)")
_JOB_ROUTES = {
    ("POST", ""): "create",
    ("GET", ""): "list",
    ("GET", "job"): "status",
    ("DELETE", "job"): "delete",
    ("POST", "cancel"): "cancel",
}
_VERBS = {
    "embedContent": "embed",
    "batchEmbedContents": "embed_many",
    "predict": "predict",
    "countTokens": "count_tokens",
}


class VertexStandIn(BatchService):
    """The service; a context manager."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        clock: Clock | None = None,
        vectors: Vectors | None = None,
        project: str = PROJECT,
    ) -> None:
        super().__init__(behaviour, clock, vectors)
        self.project = project
        self.bucket = f"gs://{BUCKET}"
        self.storage = Emulator(BUCKET)
        self.tokens = Tokens(self.clock)
        self._folder = tempfile.TemporaryDirectory(prefix="vertex-stand-in-")

    def __enter__(self) -> Self:
        self.storage.__enter__()
        return super().__enter__()

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            super().__exit__(kind, *rest)
        finally:
            self.storage.__exit__()
            self._folder.cleanup()

    def service_account(self) -> Path:
        """Write a file for GOOGLE_APPLICATION_CREDENTIALS: a service account."""
        return service_account(Path(self._folder.name), self.url, self.project)

    def workload_identity(self) -> Path:
        """Write a file for GOOGLE_APPLICATION_CREDENTIALS: a workload that exchanges its token."""
        return workload_identity(Path(self._folder.name), self.url)

    def addresses(self) -> dict[str, str]:
        """Return what a client has to know."""
        return {
            **super().addresses(),
            "project": self.project,
            "bucket": self.bucket,
            "service_account": str(self.service_account()),
            "workload_identity": str(self.workload_identity()),
        }

    def counts(self) -> dict[str, Any]:
        """Return what was counted, for `/_control`."""
        return {**super().counts(), "tokens": len(self.tokens.issued), "objects": self.storage.names()}

    def tell(self, said: dict[str, Any]) -> None:
        """Do what `/_control` says: also `expire_tokens`."""
        if said.pop("expire_tokens", False):
            self.tokens.expire()
        super().tell(said)

    def route(self, ask: Ask) -> str:
        """Name the route of a request."""
        if ask.path == "/token":
            return "token"
        if storage := storage_route(ask):
            return storage
        found = _PATH.fullmatch(ask.path)
        rest = found[4] if found else ""
        if re.fullmatch(r"publishers/google/models/[^:/]+:\w+", rest) and ask.method == "POST":
            return _VERBS.get(rest.rpartition(":")[2], "unknown")
        job = re.fullmatch(r"batchPredictionJobs(/[^:/]+)?(?::(\w+))?", rest)
        if job is None:
            return "unknown"
        return _JOB_ROUTES.get((ask.method, job[2] or ("job" if job[1] else "")), "unknown")

    def answer(self, route: str, ask: Ask) -> Reply:
        """Answer a request."""
        if route == "token":
            return self.tokens.grant(ask.body.read(), self.behaviour.token_seconds)
        storage = route.startswith("storage.")
        if not storage or self.behaviour.storage_wants_token:
            self.tokens.check(ask.headers.get("authorization", ""))
        if storage:
            return self._storage(route, ask)
        found = _PATH.fullmatch(ask.path)
        if route == "unknown" or found is None:
            raise Refused(404, f"Method not found: {ask.method} {ask.path}")
        _, project, location, rest = found.groups()
        if project not in {self.project, NUMBER}:
            raise Refused(403, f"Permission denied on resource project {project}.")
        body = ask.body.read()
        with self.lock:
            if rest.startswith("publishers"):
                model = rest.removeprefix("publishers/google/models/").partition(":")[0]
                return self._embed(route, _model(model), read_json(body))
            if route == "create":
                return self._create(read_json(body), location)
            if route == "list":
                return self._list(ask, location)
            name = f"projects/{NUMBER}/locations/{location}/{rest.partition(':')[0]}"
            return self._job(route, self.find(name, location))

    def _storage(self, route: str, ask: Ask) -> Reply:
        with self.lock:
            for job in self.jobs:
                if self._is_asked_for(route, ask, job):
                    job.late += 1
                    if job.late <= self.behaviour.late_files:
                        continue
                    self._write(job)
        return self.storage.pass_on(route, ask, self.behaviour.list_size)

    def _is_asked_for(self, route: str, ask: Ask, job: Job) -> bool:
        if job.output is None or not job.output[1] or route not in {"storage.read", "storage.list"}:
            return False
        prefix = ask.query.get("prefix", "").rstrip("/")
        folder = split(job.output[0], BUCKET)
        return f"/{folder}/" in ask.path or (route == "storage.list" and folder.startswith(prefix))

    # Batches.

    def _create(self, said: dict[str, Any], location: str) -> Reply:
        job = fields(said, _JOB, "batch_prediction_job")
        display_name, labels = job.get("displayName"), job.get("labels") or {}
        if not display_name:
            raise Refused(400, "The display name is required.")
        _check_labels(labels)
        model = _model(re.sub(r"^(projects/.*/)?publishers/google/models/", "", str(job.get("model", ""))))
        if location not in WHERE.get(model, {location}):
            raise Refused(400, f"Model {model} is not supported in {location}.", word="FAILED_PRECONDITION")
        uris, prefix = _places(job)
        for uri in [*uris, prefix]:
            split(uri, BUCKET)
        content = [self.storage.read(split(uri, BUCKET)) for uri in uris]
        rows = [row for one in content for row in read_rows(one or b"", model)]
        problems, count = self.weigh(rows, model)
        self.admit(count, location, None)
        ordinal = len(self.jobs) + 1
        number = int.from_bytes(
            hashlib.blake2b(f"{self.behaviour.seed}|{ordinal}".encode(), digest_size=7).digest()
        )
        name = f"projects/{NUMBER}/locations/{location}/batchPredictionJobs/{number:018d}"
        repeated = {
            "model": f"publishers/google/models/{model}",
            "inputConfig": job["inputConfig"],
            "outputConfig": job["outputConfig"],
            **({"labels": labels} if labels else {}),
        }
        made = Job(
            ordinal, name, location, model, display_name, self.clock.now, count, repeated, rows, problems
        )
        made.life = _LIFE_SECONDS
        self.add(made)
        if trouble := _trouble(model, content, len(rows)):
            made.refused = trouble
        return say(self._shown(made))

    def _list(self, ask: Ask, location: str) -> Reply:
        if unknown := ask.query.keys() - {"pageSize", "pageToken", "filter", "readMask", "key", "alt"}:
            raise Refused(400, f'Invalid JSON payload received. Unknown name "{min(unknown)}"')
        before, size = read_page_token(ask.query.get("pageToken", "")), int(ask.query.get("pageSize") or 50)
        wanted = ask.query.get("filter", "")
        page, more = self.page(location, size, before)
        shown = [self._shown(job) for job in page if _passes(job, wanted)]
        token = {"nextPageToken": page_token(page[-1].ordinal)} if more else {}
        return say({**({"batchPredictionJobs": shown} if shown else {}), **token})

    def _job(self, route: str, job: Job) -> Reply:
        if route == "cancel":
            if not job.final:
                job.state = "CANCELLING"
            self.cancelled.append(job.name)
            return say({})
        if route == "delete":
            if not job.final:
                raise Refused(400, "A job that has not ended cannot be deleted.", word="FAILED_PRECONDITION")
            self.deleted.append(job.name)
            operation = job.name.replace("batchPredictionJobs", "operations")
            return say(
                {
                    "name": operation,
                    "done": True,
                    "response": {"@type": "type.googleapis.com/google.protobuf.Empty"},
                }
            )
        jobs.look(job, self.behaviour, self.clock.now)
        return say(self._shown(job, results=True))

    def _shown(self, job: Job, *, results: bool = False) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "name": job.name,
            "displayName": job.display_name,
            **job.details,
            "state": f"JOB_STATE_{job.state}",
            "createTime": stamp(job.created, 6),
            **({} if job.started is None else {"startTime": stamp(job.started, 6)}),
            **({} if job.ended is None else {"endTime": stamp(job.ended, 6)}),
            "updateTime": stamp(job.updated, 6),
        }
        if job.code:
            return {**shown, "error": {"code": job.code, "message": job.message}}
        if job.state not in {"SUCCEEDED", "PARTIALLY_SUCCEEDED"}:
            return shown
        shown["completionStats"] = self._stats(job)
        if job.held < self.behaviour.late_results:
            job.held += results
            return shown
        return {**shown, "outputInfo": {"gcsOutputDirectory": self._output(job)}}

    def _stats(self, job: Job) -> dict[str, str]:
        done = served(job)
        failed = sum(job.problems[:done])
        counts = {
            "successfulCount": done - failed,
            "failedCount": failed,
            "incompleteCount": job.count - done,
        }
        return {name: str(count) for name, count in counts.items() if count or self.behaviour.zeros}

    def _output(self, job: Job) -> str:
        if job.output is None:
            prefix = job.details["outputConfig"]["gcsDestination"]["outputUriPrefix"].rstrip("/")
            folder = f"{prefix}/prediction-model-{stamp(job.ended or 0, 6)}-{job.ordinal}"
            job.output = [folder, self._files(job)]
            if not self.behaviour.late_files:
                self._write(job)
        return str(job.output[0])

    def _files(self, job: Job) -> dict[str, bytes]:
        behaviour = self.behaviour
        found = [self._line(one, job) for one in self.made(job, job.rows, job.model) if one.code != 1]
        count = behaviour.output_files
        if count == 1:
            return {f"{behaviour.output_name}.jsonl": b"".join(found)}
        return {
            f"{behaviour.output_name}-{at:05d}-of-{count:05d}.jsonl": b"".join(found[at::count])
            for at in range(count)
        }

    def _line(self, result: Result, job: Job) -> bytes:
        behaviour = self.behaviour
        said = (
            instance_line(result)
            if EMBEDDERS[job.model].legacy
            else keyed_line(result, echo_request=behaviour.echo_request, error_lines=behaviour.status_lines)
        )
        return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"

    def _write(self, job: Job) -> None:
        folder, files = job.output
        for name, content in files.items():
            self.storage.write(f"{split(folder, BUCKET)}/{name}", content)
        job.output = [folder, {}]

    # Interactive calls.

    def _embed(self, route: str, model: str, said: dict[str, Any]) -> Reply:
        legacy = EMBEDDERS[model].legacy
        if route == "count_tokens":
            return self._count(said)
        if route == "predict":
            return self._predict(model, fields(said, {"instances", "parameters"}, ""))
        if legacy or (route == "embed_many" and not self.behaviour.serves_many):
            raise Refused(404, f"Method {route} is not there for {model}.")
        requests = (
            a_list(fields(said, {"requests"}, "").get("requests"), "requests")
            if route == "embed_many"
            else [said]
        )
        rows = []
        for one in requests:
            request = fields(one, {"content", "embedContentConfig"}, "request")
            config = fields(request.get("embedContentConfig") or {}, CONFIG, "embed_content_config")
            rows.append(configured({}, read_content(request.get("content"), "content"), config, model))
        found, count = self.embed_now(rows, model)
        usage = {
            "promptTokenCount": count,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": count}],
        }
        if route == "embed_many":
            return say({"embeddings": [{"values": values} for values in found], "usageMetadata": usage})
        return say(
            {
                "embedding": {"values": found[0]},
                "usageMetadata": usage,
                "truncated": _long(rows[0].text, model),
            }
        )

    def _predict(self, model: str, said: dict[str, Any]) -> Reply:
        if model == "gemini-embedding-2":
            raise Refused(400, f"{model} is not supported by predict.")
        instances, most = (
            a_list(said.get("instances", []), "instances"),
            250 if EMBEDDERS[model].legacy else 1,
        )
        if not 1 <= len(instances) <= most:
            raise Refused(400, f"{len(instances)} instance(s) is/are not allowed; the maximum is {most}.")
        parameters = fields(
            said.get("parameters") or {}, {"outputDimensionality", "autoTruncate"}, "parameters"
        )
        rows = []
        for one in instances:
            instance = fields(one, {"content", "taskType", "title"}, "instances")
            text = str(instance.get("content", ""))
            if parameters.get("autoTruncate") is False and _long(text, model):
                raise Refused(400, f"The input token count exceeds {EMBEDDERS[model].tokens}.")
            options = {**instance, "outputDimensionality": parameters.get("outputDimensionality")}
            rows.append(configured({}, text, options, model))
        found, _ = self.embed_now(rows, model)
        pairs = zip(found, rows, strict=False)  # replies may be short
        predictions = [
            prediction(
                values, min(len(tokens(row.text)), EMBEDDERS[model].tokens), truncated=_long(row.text, model)
            )
            for values, row in pairs
        ]
        billed = sum(len(row.text.replace(" ", "")) for row in rows)
        return say({"predictions": predictions, "metadata": {"billableCharacterCount": billed}})

    def _count(self, said: dict[str, Any]) -> Reply:
        if not self.behaviour.count_tokens:
            raise Refused(404, "Method not found.")
        known = fields(said, {"contents", "instances", "model"}, "")
        texts = [read_content(one, "contents") for one in known.get("contents") or []]
        texts += [str(one.get("content", "")) for one in known.get("instances") or []]
        total = sum(len(tokens(text)) for text in texts)
        return say({"totalTokens": total, "totalBillableCharacters": sum(map(len, texts))})


def _model(name: str) -> str:
    if name not in EMBEDDERS:
        raise Refused(404, f"Publisher Model `publishers/google/models/{name}` was not found.")
    return name


def _long(text: str, model: str) -> bool:
    return len(tokens(text)) > EMBEDDERS[model].tokens


def _check_labels(labels: Any) -> None:
    pairs = labels.items() if isinstance(labels, dict) else [("", labels)]
    for name, value in pairs:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name) or not re.fullmatch(
            r"[a-z0-9_-]{0,63}", str(value)
        ):
            raise Refused(400, f"Invalid label {name!r}: {value!r}")


def _places(job: dict[str, Any]) -> tuple[list[str], str]:
    source = fields(job.get("inputConfig") or {}, {"instancesFormat", "gcsSource"}, "input_config")
    target = fields(job.get("outputConfig") or {}, {"predictionsFormat", "gcsDestination"}, "output_config")
    if (source.get("instancesFormat"), target.get("predictionsFormat")) != ("jsonl", "jsonl"):
        raise Refused(400, "This stand-in reads and writes jsonl.")
    uris = a_list(fields(source.get("gcsSource"), {"uris"}, "gcs_source").get("uris"), "gcs_source.uris")
    prefix = fields(target.get("gcsDestination"), {"outputUriPrefix"}, "gcs_destination").get(
        "outputUriPrefix"
    )
    if not uris or not prefix:
        raise Refused(400, "Input and output places are required.")
    return uris, prefix


def _trouble(model: str, content: list[bytes | None], rows: int) -> str:
    if None in content:
        return "The input file does not exist."
    size, legacy = sum(len(one or b"") for one in content), EMBEDDERS[model].legacy
    if rows > (30_000 if legacy else 1_000_000) or (size > 2**30 and not legacy):
        return f"The input has {rows} rows and {size} bytes, which is too much."
    return "" if rows else "The input has no rows."


def _passes(job: Job, wanted: str) -> bool:
    labels = job.details.get("labels", {})
    have = {
        "display_name": job.display_name,
        "displayName": job.display_name,
        "state": f"JOB_STATE_{job.state}",
    }
    have |= {f"labels.{name}": value for name, value in labels.items()}
    for part in re.split(r"\s+AND\s+", wanted) if wanted else []:
        said = re.fullmatch(r'([\w.-]+)\s*[=:]\s*"?([^"]*)"?', part.strip())
        if said is None or (said[1] not in have and not said[1].startswith("labels.")):
            raise Refused(400, f"Invalid filter: {wanted}")
        if have.get(said[1]) != said[2]:
            return False
    return True
