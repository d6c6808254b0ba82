"""Ends a private service: one that only lingers, where a client needs another; any, for who says so."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embatch import ownership, wire
from embatch.client.place import holder, read, told
from embatch.errors import FailedPrecondition
from embatch.settings import Settings, digest, installation, vector_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from embatch.client.place import Place

_ENDS, _BUSY, _UNKNOWN = 202, 409, 404
_PATIENCE_SECONDS: Final = 1.0


def may_join(data: Path, place: Place, environ: Mapping[str, str]) -> bool:
    """Return whether a client may share the service of a folder; `False`: it ends, or is about to.

    A private service that computes with other settings, or runs from another copy of embatch, is told to end
    if it only lingers. Where it has work or clients, a copy is no reason not to share it; settings are.

    Args:
        data: the folder.
        place: the service that holds it.
        environ: what the client's own service would be started with.

    Raises:
        FailedPrecondition: it computes otherwise than the client wants and has a client that needs it, or it
            does not speak as this client does.
        InvalidArgument: a setting of the client cannot be.
    """
    speaks = place.wire in (None, wire.VERSION)  # earlier versions, which do not say it, speak as this one
    if not place.private:
        if not speaks:
            raise _refusal(place, [_versions(place)], "end it where it was started")
        return True
    other = _differing(place, vector_settings(environ)) if speaks else [_versions(place)]
    if not other and place.installation in (None, installation()):
        return True
    Settings.read(environ)  # nothing is ended for a service that could not start
    answer = told(place, "POST", f"{wire.STOP}?lingering=true")
    if answer is None or answer[0] == _ENDS:
        return False
    status, said = answer
    if not other:
        return True
    if status == _BUSY and not said.get("clients") and not said.get("expected"):
        return False  # it finishes what its last client had begun
    if status not in (_BUSY, _UNKNOWN):
        return False  # such as that it has too much to do
    remedy = f"wait until its clients have gone, or end it (`embatch stop --data {shlex.quote(str(data))}`)"
    raise _refusal(place, other, f"{remedy}, or set the same" if speaks else remedy)


def _differing(place: Place, own: Mapping[str, str]) -> list[str]:
    """Return in words which settings are others here than there."""
    if place.vectors in (None, digest(own)):
        return []
    names = [name for name in own if place.settings.get(name) != own[name]]
    return [f"{name} is {place.settings.get(name, '?')} there and {own[name]} here" for name in names] or [
        "it knows other settings than this client"
    ]


def _versions(place: Place) -> str:
    return f"it speaks version {place.wire} of the protocol between client and service, not {wire.VERSION}"


def _refusal(place: Place, why: list[str], remedy: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the service of the data folder (process id {place.pid}) is another than this client needs: "
        f"{'; '.join(why)}. To go on, {remedy}"
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """A private service that was told to end, and has."""

    pid: int
    clients: int
    """How many were attached: each starts a service again when it goes on."""


def stop(data: Path, waiting: Callable[[], object]) -> Ended | None:
    """End the private service of a data folder and return once it is gone; `None`: there was none.

    Micro-batches that run are finished, and everything else waits in the folder. Repeating is safe.

    Args:
        data: the data folder, absolute.
        waiting: called once when the end takes more than a moment.

    Raises:
        InvalidArgument: the folder is not this user's alone.
        FailedPrecondition: it is held by a service that clients did not start.
    """
    ownership.check_folder(data)
    first = holder(data)
    begun, pause, clients, asked, said = time.monotonic(), 0.01, 0, False, False
    while first is not None and holder(data) == first:
        place = read(data)
        if (
            not asked and place is not None and place.pid == first
        ):  # else it has not said yet where it listens
            status: int = _UNKNOWN
            words: dict[str, Any] = {}
            if place.private is not False and place.socket is not None:
                status, words = told(place, "POST", wire.STOP) or (_BUSY, {})
            if status == _UNKNOWN:
                raise _not_ours(place, data)
            asked, clients = status == _ENDS, int(words.get("clients") or 0)
        if not said and time.monotonic() - begun > _PATIENCE_SECONDS:
            said = True
            waiting()
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)
    return None if first is None else Ended(first, clients)


def _not_ours(place: Place, data: Path) -> FailedPrecondition:
    where = place.url or f"unix:{place.socket}"
    started = "`embatch serve`" if place.private is False else "`embatch serve`, or an earlier version,"
    return FailedPrecondition(
        f"{started} holds the data folder {data} and listens at {where}: end it where it was started "
        f"(Ctrl-C), or by its process id {place.pid} (`kill {place.pid}`)"
    )
