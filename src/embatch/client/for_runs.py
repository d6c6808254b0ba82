"""What runs, and the commands, need of a client beyond what its user sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embatch.client import flows, interactive
from embatch.client.flows import RequestDefaults
from embatch.client.local import service_cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embatch.batch import Batch, Request, TaskType
    from embatch.client.calls import Flow, T
    from embatch.client.client import Client
    from embatch.client.flows import BatchOptions
    from embatch.wire.gemini.read_responses import Reference


@dataclass(frozen=True, slots=True)
class ForRuns:
    """A client's other side: batches of runs, the reference path, what the local service spends."""

    client: Client

    @property
    def local(self) -> bool:
        """Whether the target is the private service of this machine, whose clock is then ours too."""
        return self.client._session.target.data is not None  # noqa: SLF001  (the same package)

    def submit(
        self, requests: Iterable[str | Request | None], defaults: RequestDefaults, options: BatchOptions
    ) -> Batch:
        """Submit a batch as `Client.async_batch_embed_contents` does, perhaps as a part of a run."""
        defaults = replace(defaults, model=self._model(defaults.model))
        return self._run(flows.submit(self.client._session, requests, defaults, options))  # noqa: SLF001

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

    def cpu_seconds(self) -> float | None:
        """Return the CPU seconds spent so far by the local service with its engine processes.

        `None` where the client has no local service, or the system does not tell (Linux does).
        """
        attachment = self.client._connection.attachment  # noqa: SLF001
        return None if attachment is None else service_cpu_seconds(attachment)

    def _model(self, name: str | None) -> str | None:
        return self.client._model if name is None else name  # noqa: SLF001

    def _run(self, flow: Flow[T]) -> T:
        return self.client._run(flow)  # noqa: SLF001
