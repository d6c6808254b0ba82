"""The blocking client: a thin shell around the flows. Its twin is `async_client`, held alike by a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from embatch.client import flows, interactive, models
from embatch.client.base import ClientOptions
from embatch.client.blocking import BlockingClient
from embatch.client.connection import Connection
from embatch.client.flows import RequestDefaults
from embatch.client.targets import UNSAID

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    import httpx2

    from embatch.batch import Batch, Model, Request, TaskType
    from embatch.client.results import BatchResult
    from embatch.vectors import ContentEmbedding


class Client(BlockingClient):
    """Submits texts as batches and brings back their embeddings; blocks the calling thread.

    Usable from a script, a thread or a notebook; one client may be shared by threads. Nothing is started or
    connected before the first call. Use it as a context manager, or `close` it: the private service of the
    `local` target lives as long as its clients.

        with Client() as client:
            batch = client.async_batch_embed_contents(texts, display_name="Knowledge base")
            batch = client.await_batch_completion(batch.name)
            vectors = client.get_batch_embeddings(batch).to_numpy()

    >>> Client("gemini", api_key="secret")
    Client('https://generativelanguage.googleapis.com')

    Args:
        target: `local` (a private service, started or joined as needed), a service's address
            (`http://host:8080`) or socket (`unix:/path`), `gemini` (Google's own batch API), or `vertex`
            (that of Vertex AI, with Google's application default credentials instead of a key).
        auth: whose keys are used, in the guide's words, instead of the target: `gemini` means the target
            `gemini`, `vertex_ai` the target `vertex`.
        api_key: key of the target; by default GOOGLE_API_KEY, else GEMINI_API_KEY, for `gemini`, and
            EMBATCH_API_KEY for a service by its address or socket.
        base_url: with `gemini` another address that speaks Google's protocol, which is sent the key, by
            default GOOGLE_GEMINI_BASE_URL; alone, a service's address. `None` takes the target's own.
        timeout: seconds for connecting and for each silence; `None` takes 10 to connect and 60 of silence,
            600 for calls that embed or read much; `math.inf` for none.
        max_retries: how often a call is sent again after what can pass; `None` takes 5, and 9 failures in a
            row while a batch is awaited. A wait that the target asks for is obeyed up to two minutes; one
            that asks for more is an error at once.
        rate: most texts a minute that are embedded at once, or most texts and most of their tokens, which
            are estimated; what is more waits. `None` sends what it has until the service refuses some, and
            from then on as much as it lets pass. Batches have nothing to do with it.
        http_client: what requests travel by, with its proxies and certificates; whoever made it closes it.
            For addresses and `gemini`. `None` makes one that follows the environment's variables.
        data: data folder of the `local` target; `None` takes EMBATCH_DATA, else the platform's place.
        model: model of all calls that name none; `None` takes the target's first one. The `local` target
            takes any, here and in every call: a Hub name, or a folder (it begins with `/`, `./`, `../`, `~`).
        project: with `vertex` the project; `None` takes GOOGLE_CLOUD_PROJECT.
        location: with `vertex` where its models run; `None` takes GOOGLE_CLOUD_LOCATION.
        staging: with `vertex` the bucket, or a folder in one (`gs://bucket/folder`), that batches go through;
            `None` takes EMBATCH_STAGING. What is staged goes when its batch is deleted.
        transport: deprecated, gone with the next release: give `http_client`.

    Raises:
        InvalidArgument: no such target, one that `auth` contradicts, or an argument that cannot be: the
            message names it.
        Unauthenticated: `gemini` without a key.
    """

    def __init__(  # noqa: PLR0913  (options, by name)
        self,
        target: str = UNSAID,
        *,
        auth: Literal["gemini", "vertex_ai"] | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        rate: int | tuple[int, int] | None = None,
        http_client: httpx2.Client | None = None,
        data: str | os.PathLike[str] | None = None,
        model: str | None = None,
        project: str | None = None,
        location: str | None = None,
        staging: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        where = (project, location, staging)
        super().__init__(
            ClientOptions(target, base_url, api_key, data, model, timeout, max_retries, auth, *where, rate)
        )
        self._connection = Connection(self._session, http_client, transport)

    def async_batch_embed_contents(  # noqa: PLR0913  (the guide's options, by name)
        self,
        requests: Iterable[str | Request | None],
        *,
        display_name: str,
        model: str | None = None,
        task_type: TaskType | str | None = None,
        output_dimensionality: int | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Submit texts as one batch and return it at once; it is durable on return.

        Repeats by itself after broken connections without making a second batch (on `gemini` only where
        nothing can have been accepted). What is too large to be sent inline goes through a file by itself.
        A faulty text (empty, missing, too long, …) fails alone: see `BatchResult.failed_responses`.

        Args:
            requests: texts, or requests with key, metadata, title, task type or dimensions of their own; any
                iterable, for `AsyncClient` also an asynchronous one. It is read once and in bounded memory,
                to its end before anything is sent. `None` or NaN, as a table has it where a text is missing,
                fails alone; what can be no text, such as a number or bytes, is refused with its position.
            display_name: what people will know the batch by.
            model: `None` takes the client's, else the target's first one.
            task_type: what the embeddings are for, where a request does not say.
            output_dimensionality: leading dimensions wanted, re-normalised, where a request does not say;
                `None` for the model's native number.
            priority: higher runs first, strictly.
            idempotency_key: a second submit with the same key and content returns the first batch instead of
                making another; a random one per call by default. `gemini` has none and ignores it.

        Raises:
            InvalidArgument: no `display_name`, no requests, or a setting the target refuses: the message
                names the argument.
            NotFound: the target has no such model; the message says which, and how to get this one.
            ConnectionFailed: the target cannot be reached.
        """
        defaults = RequestDefaults(self._model if model is None else model, task_type, output_dimensionality)
        labels = flows.BatchOptions(display_name, priority, idempotency_key)
        return self._run(flows.submit(self._session, requests, defaults, labels))

    def get_batch_status(self, name: str | Batch) -> Batch:
        """Return the batch as it is now.

        Raises:
            NotFound: no such batch.
        """
        return self._run(flows.get(self._session, name))

    def await_batch_completion(
        self,
        name: str | Batch,
        *,
        poll_interval: float | None = None,
        timeout: float | None = None,
        on_progress: Callable[[Batch], object] | None = None,
    ) -> Batch:
        """Wait for a batch and return it in whatever final state it reached.

        Args:
            name: `batches/{id}`, or the batch.
            poll_interval: seconds between polls; `None` takes the guide's, by the batch's size: 2, 5, 10, 30
                for fewer than 100, 1,000, 10,000 and more, and before that 0.1, 0.2, 0.4 and so on.
            timeout: seconds to wait at most; `None` takes the guide's: one a request and two minutes, from
                when the number of requests is known. `math.inf` waits for ever.
            on_progress: called with the batch after every poll, the last included; what it raises ends the
                wait. `AsyncClient` also takes a coroutine function and awaits it.

        Raises:
            BatchTimeout: the time passed; the batch goes on and can be awaited again.
            NotFound: no such batch.
        """
        return self._run(
            flows.await_batch(self._session, name, flows.Wait(poll_interval, timeout), on_progress)
        )

    def watch(
        self, name: str | Batch, *, poll_interval: float | None = None, timeout: float | None = None
    ) -> Iterator[Batch]:
        """Iterate over a batch as it changes: as it is now, each change that a poll finds, its final state.

        Leaving the loop leaves the batch alone.

            for batch in client.watch(name):
                print(f"{batch.state} {batch.batch_stats.progress_percentage:.0f} %")

        Args:
            name: as for `await_batch_completion`.
            poll_interval: likewise.
            timeout: likewise; the time that the loop's own work takes is part of it.

        Raises:
            BatchTimeout: the time passed; the batch goes on and can be watched again.
            NotFound: no such batch.
        """
        watch = flows.Watch(self._session, name, flows.Wait(poll_interval, timeout))
        done = False
        while not done:
            batch = self._run(watch.change())
            done = batch.done
            yield batch

    def get_batch_embeddings(
        self, batch: str | Batch, *, partial: bool = False, output_dimensionality: int | None = None
    ) -> BatchResult:
        """Return the embeddings of a finished batch, in the order of its requests.

        Args:
            batch: `batches/{id}`, or the batch.
            partial: also read what a cancelled or expired batch finished; the rest stands as failed.
            output_dimensionality: leading dimensions wanted, re-normalised, for every request alike; `None`
                gives each what it asked for on submit.

        Raises:
            BatchNotCompleted: it still runs, or was stopped and `partial` is not set.
            BatchFailed: the batch as a whole could not be worked.
            DataLoss: a request is missing from the results or stands there twice.
            NotFound: no such batch.
        """
        return self._run(flows.results(self._session, batch, output_dimensionality, partial=partial))

    def retry_failed(
        self,
        batch: str | Batch,
        requests: Sequence[str | Request | None],
        *,
        display_name: str | None = None,
        task_type: TaskType | str | None = None,
        output_dimensionality: int | None = None,
    ) -> Batch:
        """Submit those requests of a batch that failed as a new batch of the same model and priority.

        `BatchResult.fill` then puts what the new batch gives at the places of the failed ones.

        Args:
            batch: the batch, finished or stopped.
            requests: all its requests in their order, mended where that is needed.
            display_name: by default the first one's with " (retry)".
            task_type: give the first batch's again: a batch does not remember it.
            output_dimensionality: as on the first submit.

        Raises:
            InvalidArgument: `requests` are not as many as the batch had.
            FailedPrecondition: no request failed, or the batch still runs.
        """
        defaults = RequestDefaults(None, task_type, output_dimensionality)
        return self._run(flows.retry_failed(self._session, batch, requests, defaults, display_name))

    def list_batches(self, *, page_size: int | None = None) -> Iterator[Batch]:
        """Iterate over all batches, newest first, asking for one page at a time as they are needed.

        Args:
            page_size: batches a page; `None` leaves it to the target.
        """
        token: str | None = None
        while True:
            page = self._run(flows.page(self._session, page_size, token))
            yield from page.items
            if (token := page.next_page_token) is None:
                return

    batches = list_batches

    def update_batch(
        self, name: str | Batch, *, display_name: str | None = None, priority: int | None = None
    ) -> Batch:
        """Change a batch's display name or priority, also while it runs; `None` leaves it. Returns it.

        Raises:
            InvalidArgument: nothing to change, or a value the target refuses.
            NotFound: no such batch.
        """
        return self._run(flows.update(self._session, name, display_name, priority))

    def cancel_batch(self, name: str | Batch) -> Batch:
        """Stop a batch for good and return it; what was finished can be read with `partial=True`.

        Repeating is safe: a batch that is in a final state stays in it, and comes back as it is.

        Raises:
            NotFound: no such batch.
        """
        return self._run(flows.cancel(self._session, name))

    def delete_batch(self, name: str | Batch) -> None:
        """Delete a finished batch with its embeddings.

        Raises:
            FailedPrecondition: it still runs; cancel it first.
            NotFound: no such batch.
        """
        return self._run(flows.delete(self._session, name))

    def embed_content(
        self,
        text: str,
        *,
        model: str | None = None,
        task_type: TaskType | str | None = None,
        title: str | None = None,
        output_dimensionality: int | None = None,
    ) -> ContentEmbedding:
        """Return the embedding of one text now: for queries, which somebody waits for.

        Args:
            text: what to embed.
            model: `None` takes the client's, else the target's first one.
            task_type: what the embedding is for, such as RETRIEVAL_QUERY.
            title: the document's title; only with RETRIEVAL_DOCUMENT.
            output_dimensionality: leading dimensions wanted, re-normalised; `None` for the native number.

        Raises:
            InvalidArgument: the text is empty or too long, or a setting is refused.
        """
        defaults = RequestDefaults(self._model if model is None else model, task_type, output_dimensionality)
        return self._run(interactive.embed(self._session, text, title, defaults))

    def batch_embed_contents(
        self,
        requests: Iterable[str | Request],
        *,
        model: str | None = None,
        task_type: TaskType | str | None = None,
        output_dimensionality: int | None = None,
    ) -> list[ContentEmbedding]:
        """Return the embeddings of a few texts now, in their order, asking for 100 at a time.

        All or nothing: one faulty text is an error of the whole. For more than some hundred texts a batch is
        cheaper and keeps faults apart.

        Raises:
            InvalidArgument: a text is empty or too long, or a setting is refused.
        """
        defaults = RequestDefaults(self._model if model is None else model, task_type, output_dimensionality)
        return self._run(interactive.embed_many(self._session, requests, defaults))

    def count_tokens(self, texts: Sequence[str], *, model: str | None = None) -> int:
        """Return how many tokens the target's model sees in the texts, all together.

        On an embatch service a text that could not be embedded counts 0.
        """
        return self._run(
            interactive.count_tokens(
                self._session, texts, RequestDefaults(self._model if model is None else model)
            )
        )

    def list_models(self) -> Iterator[Model]:
        """Iterate over the models of the target; an embatch service names its default first."""
        token: str | None = None
        while True:
            page = self._run(models.models(self._session, token))
            yield from page.items
            if (token := page.next_page_token) is None:
                return

    models = list_models

    def close(self) -> None:
        """Close connections and let go of the local service. Batches go on; repeating is safe.

        An `http_client` that was given stays open. On a copy of `with_options` nothing happens.
        """
        if not self._is_copy:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
