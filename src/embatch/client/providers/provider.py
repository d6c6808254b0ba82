"""What differs between the places where batches run: how they are spoken to, and what each can do.

A provider is a file beside this one and a line in `targets`. What is alike everywhere stands in the flows:
which steps there are and in which order, repeats, polling, when a batch goes through a file. A step of one
call is pure, an `Exchange`; a step of several is a flow that talks through a `Sender`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol

from embatch import backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from embatch.batch import Batch, Model, Page, Request
    from embatch.client.calls import Call, Exchange, Flow, Reply, Sender
    from embatch.client.results import BatchResult
    from embatch.client.upload import FileUpload
    from embatch.errors import EmbatchError, NotFound
    from embatch.vectors import ContentEmbedding
    from embatch.wire.gemini.read_responses import Reference
    from embatch.wire.private import ModelAnswer, WantedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a provider can do. Who wants to know asks for one by its name, and never who the provider is."""

    inline_bytes: int
    """Largest body of a submit; more goes through a file."""
    inline_requests: int
    """Most requests of a submit; more goes through a file. 0: all do."""
    interactive_requests: int
    """Most texts of one interactive call."""
    interactive_calls: int = 1
    """Most interactive calls at a time for one list of texts."""
    counted_requests: int = 1_000
    """Most texts of one call that counts tokens."""
    batches_in_flight: int | None = None
    """Most batches of one run that are handed over at once; they are read as they end. `None`: the oldest is
    awaited with two behind it."""
    tokens_in_flight: int | None = None
    """Most tokens of all these batches together; `None` where nobody counts them."""
    file_bytes: int | None = None
    """Most bytes of an uploaded file; `None` where there is no limit that a run's block can reach."""
    file_requests: int | None = None
    """Most requests in it; `None` as before."""
    idempotency_keys: bool = False
    """Whether a submit carries a key by which it can be repeated; else one that may have been accepted is
    not, for it would cost twice."""
    content_names: bool = False
    """Whether an uploaded file can be named after its content, so that the same goes up once."""
    any_text_in_files: bool = False
    """Whether files carry the texts that JSON cannot, so that these fail alone and for what they are."""
    priorities: bool = False
    """Whether batches have a priority; a submit or update with one is refused elsewhere."""
    run_cache: bool = False
    """Whether what a run computed can answer later runs."""
    reference_path: bool = False
    """Whether there is a path to compare vectors with: float32, one text at a time."""
    native_results: bool = False
    """Whether results keep the model's own dimensions whatever was asked for, which is a view on reading;
    else the dimensions stand in each request, for good."""
    cpu_accounting: bool = False
    """Whether a batch says what processor time it took."""
    any_model: bool = False
    """Whether its local service serves whatever model it is asked for."""
    poll_interval: Callable[[int], float] = backoff.poll_interval
    """Seconds between polls of a batch of so many requests, where the caller names none; the first ones come
    sooner."""
    time_limit: Callable[[int], float] = backoff.time_limit
    """Seconds for which such a batch is awaited, where the caller names no limit."""


class RequestWriter(Protocol):
    """Encodes requests into a file, in their order."""

    mime_type: ClassVar[str]

    def write(self, requests: Sequence[Request]) -> None:
        """Append requests. Raises `InvalidArgument` for one that such a file cannot carry."""
        ...

    def finish(self) -> None:
        """Complete the file, which stays open."""
        ...


class Credential(Protocol):
    """What shows who sends a call, where that ends and has to be renewed. Nothing of it is ever printed."""

    @property
    def fresh(self) -> bool:
        """Whether it can be used now."""
        ...

    @property
    def secret(self) -> str | None:
        """What nobody may be shown of it, an answer that repeats it included; `None` before there is one."""
        ...

    def headers(self) -> Mapping[str, str]:
        """Return what a call carries."""
        ...

    def renew(self, refused: Mapping[str, str] | None) -> None:
        """Renew it; blocks. `refused`: what a call carried in vain; `None` where it has only ended.

        Raises:
            Unauthenticated: there is none to be had.
            ConnectionFailed: who gives it cannot be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """One place where batches run, and whose it is. The key is never shown in its `repr`."""

    url: str
    """Address with scheme, host and perhaps a path before the provider's own; no slash at its end."""
    provider: Provider
    socket: Path | None = None
    """Unix socket through which `url` is reached; `None` for TCP."""
    data: Path | None = None
    """Data folder of the local service, started or joined as needed; `None` for all other targets."""
    preload: bool = True
    """Whether a service that is started there loads its default model at once."""
    key: str | None = field(default=None, repr=False)
    credential: Credential | None = field(default=None, repr=False, compare=False)
    """What shows who sends a call instead of a key, where it has to be renewed; `None` where a key does."""
    others: tuple[str, ...] = ()
    """Addresses that calls go to besides `url`, such as that of the storage which batches go through."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What every call to the target's own address carries."""
        return {**self.provider.sign(self.key), **(self.credential.headers() if self.credential else {})}

    @property
    def clock_skew(self) -> float:
        """Seconds by which the clock that dates the batches may differ from ours."""
        return 0.0 if self.data is not None else 1.0

    def place_of(self, call: Call) -> str:
        """Return which of its addresses a call goes to, for messages."""
        return next((one for one in self.others if call.path.startswith(one)), self.url)

    def at(self, path: str) -> str:
        """Return the address of a path below the target; an absolute address stays as it is."""
        return path if "://" in path else self.url + path


@dataclass(frozen=True, slots=True)
class Provider(ABC):
    """Whose protocol a target speaks.

    Models are named without `models/`, batches `batches/{id}`. A step raises `Internal` or `DataLoss` for an
    answer that cannot be what it should.
    """

    name: str
    """What a run's identity and the price list call it; stays."""
    capabilities: Capabilities
    model: str | None = field(default=None, kw_only=True)
    """Model where the caller names none; `None` asks for the first one of `models`."""

    @property
    def account(self) -> Mapping[str, str]:
        """Return what beside the address says whose batches these are, by name, such as project and location.

        A part of each run's identity; stays.
        """
        return {}

    def capabilities_of(self, model: str | None) -> Capabilities:  # noqa: ARG002  (what others need)
        """Return what the provider can do with a model, `None` for the default one: limits may differ."""
        return self.capabilities

    @property
    def known_models(self) -> tuple[Model, ...]:
        """The models of a service that cannot be asked for them, the default one first; empty: it can."""
        return ()

    @abstractmethod
    def sign(self, key: str | None) -> Mapping[str, str]:
        """Return the headers by which a call to the target's own address shows who sends it."""

    @abstractmethod
    def read_error(self, reply: Reply) -> EmbatchError:
        """Return what an answer other than 2xx means, whatever its body is."""

    # requests on their way out

    def as_sent(self, model: str | None, request: Request) -> Request:  # noqa: ARG002  (what others need)
        """Return a request as the model reads it, where the provider writes its task into its text."""
        return request

    @abstractmethod
    def writer(self, file: BinaryIO, model: str | None) -> RequestWriter:
        """Return what encodes requests into a file; `model`: what shall embed, `None` for the first one."""

    @abstractmethod
    def upload(self, sender: Sender, upload: FileUpload) -> Flow[str]:
        """Upload a complete file and return its name. Repeating the whole is safe."""

    @abstractmethod
    def inline_body(self, model: str, display_name: str, priority: int, requests: Sequence[Request]) -> bytes:
        """Return the body of a submit that carries its requests. Not called where `inline_requests` is 0."""

    @abstractmethod
    def file_body(self, model: str, display_name: str, priority: int, file: str) -> bytes:
        """Return the body of a submit whose requests are in an uploaded file."""

    @abstractmethod
    def create(
        self, model: str, body: bytes, idempotency_key: str | None, run: str | None
    ) -> Exchange[Batch]:
        """Submit a body.

        Args:
            model: what shall embed.
            body: of `inline_body` or `file_body`.
            idempotency_key: set where there are `idempotency_keys`.
            run: the run it is a part of; of use where there is a `run_cache`.
        """

    # batches

    @abstractmethod
    def status(self, name: str) -> Exchange[Batch]:
        """Ask for a batch as it is now."""

    @abstractmethod
    def batches(self, size: int | None, token: str | None) -> Exchange[Page[Batch]]:
        """Ask for a page of all batches, newest first; `None` for the usual size, and for the first page."""

    @abstractmethod
    def update(self, name: str, display_name: str | None, priority: int | None) -> Exchange[Batch]:
        """Change what is not `None`."""

    @abstractmethod
    def cancel(self, name: str) -> Call:
        """Stop a batch."""

    @abstractmethod
    def delete(self, name: str) -> Call:
        """Delete a finished batch."""

    def discard(self, sender: Sender, name: str) -> Flow[None]:
        """Delete a finished batch with what was stored for it; by default there is nothing but the batch."""
        yield from sender.send(self.delete(name))

    @abstractmethod
    def results(self, sender: Sender, batch: Batch, dimensions: int | None) -> Flow[BatchResult]:
        """Read the results of a batch in a final state, each request once, in order.

        `dimensions`: leading ones wanted, re-normalised; `None` leaves them as they are.
        """

    # at once

    @abstractmethod
    def models(self, size: int | None, token: str | None) -> Exchange[Page[Model]]:
        """Ask for one page of the models, the default one first."""

    @abstractmethod
    def embed(self, model: str, request: Request) -> Exchange[ContentEmbedding]:
        """Embed one text."""

    @abstractmethod
    def embed_many(self, model: str, requests: Sequence[Request]) -> Exchange[list[ContentEmbedding]]:
        """Embed a few texts, in their order."""

    @abstractmethod
    def count_tokens(self, model: str, texts: Sequence[str]) -> Exchange[int]:
        """Count the tokens of texts, all together."""

    def embed_reference(self, model: str, requests: Sequence[Request]) -> Exchange[Reference]:
        """Embed a few texts by the reference path; only where there is a `reference_path`."""
        raise NotImplementedError

    def clean_up(self, sender: Sender, batch: Batch) -> Flow[None]:  # noqa: ARG002  (what others need)
        """Delete the files that were made for a batch, once nobody needs them; by default there are none."""
        yield from ()

    def publish(self, run: str) -> Exchange[int]:
        """Let what a run computed answer later ones; only where there is a `run_cache`."""
        raise NotImplementedError

    def serve(self, model: WantedModel) -> Exchange[ModelAnswer]:
        """Have a private service serve a model; only where it serves `any_model`. Repeating is safe."""
        raise NotImplementedError

    def not_served(self, sender: Sender, target: Target, model: str, error: NotFound) -> Flow[NotFound]:  # noqa: ARG002  (what others need)
        """Return what to say where a model is not known: by default what the service said."""
        yield from ()
        return error
