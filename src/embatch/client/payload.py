"""The requests of a submit on their way out: held while they are few, spooled to a file when they are not."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, Final

from embatch.batch import DISPLAY_NAME, Request, Texts
from embatch.client import arguments
from embatch.client.calls import Await, work
from embatch.client.upload import FileUpload
from embatch.errors import InvalidArgument
from embatch.jsontext import encodable
from embatch.wire.gemini.write_requests import refuse_unsayable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from io import BufferedRandom

    from embatch.client.calls import Flow
    from embatch.client.providers.provider import Provider, RequestWriter

BLOCK_REQUESTS: Final = 4096
"""Requests encoded at a time: some milliseconds of work."""
_BLOCK_CHARACTERS: Final = 4 << 20
"""Of texts: a block that has so many is encoded though it has fewer requests."""
_TAKEN: Final = 64
"""Requests taken between two looks at how long their texts are."""
_OVERHEAD: Final = 64
"""Least bytes of JSON around one text."""
_MISSING: Final = ("NAType", "NaTType")


def request(given: object, index: int, defaults: Request) -> Request:
    """Return one request with what it does not say taken from the defaults.

    A text that is missing, as `None` or NaN in a table, is one whose request will fail alone.

    Raises:
        InvalidArgument: it is neither text nor a request, or has something that cannot be sent.
    """
    if isinstance(given, str):
        return replace(defaults, text=given)
    if _missing(given):
        return replace(defaults, text=None)
    place = f"requests[{index}]"
    if not isinstance(given, Request):
        raise InvalidArgument(f"{place} is {arguments.kind(given)}, not a text or a Request", field=place)
    text = None if _missing(given.text) else given.text
    if text is not None and not isinstance(text, str):
        arguments.refuse(f"{place}.text", "a text", text)
    for name, value in (("key", given.key), ("title", given.title)):
        if value is not None and not isinstance(value, str):
            arguments.refuse(f"{place}.{name}", "a text", value)
    refuse_unsayable(given, place)
    task_type = arguments.task_type(given.task_type, f"{place}.task_type")
    dimensions = arguments.optional_whole(
        f"{place}.output_dimensionality", given.output_dimensionality, arguments.INT32_ABOVE_0
    )
    return replace(
        given,
        text=text,
        task_type=task_type or defaults.task_type,
        output_dimensionality=dimensions or defaults.output_dimensionality,
    )


def _missing(value: object) -> bool:
    """Return whether a table has nothing here: `None`, NaN of any kind, or what pandas puts in its place."""
    if value is None or type(value).__name__ in _MISSING:
        return True
    return isinstance(value, Real) and value != value  # noqa: PLR0124  (NaN alone)


def blocks(
    requests: Iterable[str | Request | None], defaults: Request, size: int = BLOCK_REQUESTS, *, first: int = 0
) -> Iterator[Sequence[Request]]:
    """Yield the requests in blocks, completed by the defaults; the iterable is read once, as needed.

    Args:
        requests: texts or requests.
        defaults: what a request that does not say otherwise is like.
        size: requests of a block, at most.
        first: position of the first one in its batch.

    Raises:
        InvalidArgument: it is empty, has no order, is one text instead of several, or holds something else.
    """
    if isinstance(requests, str | bytes | Request):
        raise InvalidArgument("give a list of texts, not one text", field="requests")
    # A table would give the names of its columns, a mapping its keys, a set no order to find a result by.
    if isinstance(requests, Mapping | AbstractSet) or type(requests).__name__ == "DataFrame":
        arguments.refuse("requests", "a list of texts or requests", requests)
    try:
        iterator, count = iter(requests), first
    except TypeError:
        arguments.refuse("requests", "a list of texts or requests", requests)
    while block := _take(iterator, size):
        texts = [one for one in block if isinstance(one, str)]
        if len(texts) == len(block):  # as nearly always, and a request for each would take most of the time
            yield Texts(texts, defaults)
        else:
            yield [request(one, count + at, defaults) for at, one in enumerate(block)]
        count += len(block)
    if not count:
        raise InvalidArgument(
            "there is nothing to embed: the list is empty", field="requests", reason="EMPTY_BATCH"
        )


def _take(iterator: Iterator[str | Request | None], size: int) -> list[str | Request | None]:
    """Return the next requests: `size` at most, fewer where their texts are long, none at the end."""
    block: list[str | Request | None] = []
    characters = 0
    while len(block) < size and characters < _BLOCK_CHARACTERS:
        more = list(islice(iterator, min(_TAKEN, size - len(block))))
        if not more:
            break
        block += more
        characters += _characters(more)
    return block


async def take_async(iterator: AsyncIterator[str | Request | None], into: list[str | Request | None]) -> None:
    """Append the next requests, as many as make a block; none at the end."""
    characters = 0
    while len(into) < BLOCK_REQUESTS and characters < _BLOCK_CHARACTERS:
        try:
            into.append(await anext(iterator))
        except StopAsyncIteration:
            return
        characters += _length(into[-1])


def _characters(given: Sequence[object]) -> int:
    """Return the characters of some texts."""
    try:
        # Texts alone, as nearly always: joined they tell it sooner than a length each.
        return len("".join(given))  # type: ignore[arg-type]
    except TypeError:
        return sum(map(_length, given))


def _length(given: object) -> int:
    """Return the characters of a text, 0 for what has none; what it is at all, `request` tells."""
    text = given.text if isinstance(given, Request) else given
    return len(text) if isinstance(text, str) else 0


class Payload:
    """Gathers the requests of one batch in the form its provider takes.

    Args:
        provider: who takes them.
        model: the model's name as it was given; `None` where the target's first one is meant.

    Attributes:
        inline: all requests while they are few enough to be sent inline; `None` once there is a file.
    """

    def __init__(self, provider: Provider, model: str | None = None) -> None:
        self.inline: list[Request] | None = []
        self._provider = provider
        self._model = None if model is None else model.removeprefix("models/")
        self._bytes = 0
        self._file: BufferedRandom | None = None
        self._writer: RequestWriter | None = None

    def gather(
        self, requests: Iterable[str | Request | None] | AsyncIterable[str | Request | None], like: Request
    ) -> Flow[None]:
        """Take all requests, reading them once and no more than a block of them at a time.

        Raises:
            InvalidArgument: as `blocks`.
        """
        if not isinstance(requests, AsyncIterable) or isinstance(requests, Iterable):
            for block in blocks(requests, like):
                yield from work(partial(self.add, block))
            return
        iterator, count = aiter(requests), 0
        while True:
            taken: list[str | Request | None] = []
            yield Await(take_async(iterator, taken), "requests")
            if not taken and count:
                return
            for block in blocks(taken, like, first=count):
                yield from work(partial(self.add, block))
            count += len(taken)

    def add(self, block: Sequence[Request]) -> None:
        """Take more requests."""
        if self.inline is None:
            self._write(block)
            return
        self.inline += block
        texts = [one.text or "" for one in block]
        self._bytes += sum(_OVERHEAD + len(text) for text in texts)
        can = self._provider.capabilities
        if (
            len(self.inline) > can.inline_requests
            or self._bytes > can.inline_bytes
            # JSON has no such text; where a file says what it is, its error does too.
            or (can.any_text_in_files and not all(map(encodable, texts)))
        ):
            self._spill()

    def _spill(self) -> None:
        held, self.inline = self.inline or [], None
        self._file = tempfile.TemporaryFile(prefix="embatch-")  # noqa: SIM115  (see discard)
        self._writer = self._provider.writer(self._file, self._model)
        self._write(held)

    def _write(self, block: Sequence[Request]) -> None:
        assert self._writer is not None  # noqa: S101
        self._writer.write(block)

    def close(self) -> None:
        """All requests are here: complete the file, if there is one."""
        if self._writer is not None:
            self._writer.finish()

    def to_file(self) -> None:
        """Make a file of what was meant to go inline."""
        if self.inline is not None:
            self._spill()
        self.close()

    def file(self, display_name: str, *, named: bool) -> FileUpload:
        """Return the complete file; `named` after its content, so that a submit can be repeated exactly."""
        assert self._file is not None  # noqa: S101
        assert self._writer is not None  # noqa: S101
        size = self._file.seek(0, 2)
        names: tuple[str, ...] = ()
        if named and self._provider.capabilities.content_names:
            self._file.seek(0)
            digest = hashlib.file_digest(self._file, "sha256").hexdigest()
            name = f"files/embatch-{digest[:30]}"
            names = (name, *(f"{name}-{number}" for number in range(1, 4)))
        return FileUpload(self._file, size, self._writer.mime_type, display_name[:DISPLAY_NAME], names)

    def discard(self) -> None:
        """Drop the file. Repeating is safe."""
        if self._file is not None:
            self._file.close()
