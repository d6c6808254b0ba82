"""What runs, and the commands, need of a client beyond what its user sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embatch.client import flows, interactive
from embatch.client.flows import RequestDefaults, Wait, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from embatch.batch import Batch, Request, TaskType
    from embatch.client.calls import Flow, T
    from embatch.client.client import Client
    from embatch.client.flows import BatchOptions
    from embatch.client.providers.provider import Capabilities
    from embatch.wire.gemini.read_responses import Reference


@dataclass(frozen=True, slots=True)
class ForRuns:
    """A client's other side: batches of runs, and the reference path that checks them."""

    client: Client

    def submit(
        self,
        requests: Iterable[str | Request | None],
        defaults: RequestDefaults,
        options: BatchOptions,
        before: Callable[[], None] | None = None,
    ) -> Batch:
        """Submit a batch as `Client.async_batch_embed_contents` does, perhaps as a part of a run.

        `before` is called when all is ready and nothing but the create is still to be sent.
        """
        defaults = replace(defaults, model=self._model(defaults.model))
        return self._run(flows.submit(self.client._session, requests, defaults, options, before))  # noqa: SLF001  (the same package)

    def capabilities(self, model: str | None) -> Capabilities:
        """Return what the target can do with a model; `None` for the client's, or the target's first one."""
        provider = self.client._session.provider  # noqa: SLF001
        return provider.capabilities_of(self._model(model))

    def look(self, name: str) -> Batch:
        """Return a batch as it is now; troubles that pass are waited out as where a batch is awaited."""
        return self._run(Watch(self.client._session, name, Wait(0.0, math.inf)).poll())  # noqa: SLF001

    def embed_reference(
        self, texts: Sequence[str], *, model: str | None = None, task_type: TaskType | str | None = None
    ) -> Reference | None:
        """Embed a few texts by the service's reference path: float32, one text at a time.

        For certificates: what a batch gave is compared with it. Returns embeddings in order, what they cost,
        and the engine they stand against; `None` where the target has no such path. Without texts the path
        gets ready while the caller does something else.

        Raises:
            InvalidArgument: a text is empty or too long, or a setting is refused.
        """
        defaults = RequestDefaults(self._model(model), task_type)
        return self._run(interactive.reference(self.client._session, texts, defaults))  # noqa: SLF001

    def publish(self, run: str) -> int:
        """Let the vectors of a run's deleted batches answer the texts of later runs; return how many are new.

        Durable on return; repeating is safe. On a target without a cache nothing happens.
        """
        return self._run(interactive.publish(self.client._session, run))  # noqa: SLF001

    def model_name(self, name: str | None) -> str | None:
        """Return the model of a batch that names `name`; `None` for the target's own."""
        return self._model(name)

    def clean_up(self, batch: Batch) -> None:
        """Delete the input and the results that were stored for a finished batch, before the batch itself.

        For a run whose rows of it are durable elsewhere. Only files that are known to be the run's own are
        deleted, and what cannot be deleted goes by itself in time; repeating is safe. Where a service keeps
        its files with their batch nothing happens.

        Raises:
            FailedPrecondition: the batch still runs.
        """
        self._run(flows.clean_up(self.client._session, batch))  # noqa: SLF001

    def _model(self, name: str | None) -> str | None:
        return self.client._model if name is None else name  # noqa: SLF001

    def _run(self, flow: Flow[T]) -> T:
        return self.client._run(flow)  # noqa: SLF001
