"""Whether a call that failed is sent again: what can help, and does no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embatch.client.calls import NOT_SENT
from embatch.client.receiving import TOO_LARGE
from embatch.errors import Internal, ResourceExhausted

if TYPE_CHECKING:
    from embatch.client.calls import Call
    from embatch.errors import EmbatchError


def repeatable(call: Call, error: EmbatchError, *, once: bool = False) -> bool:
    """Whether sending the call again can help and does no harm."""
    if once:
        # Trouble of the service, or a gateway that lost patience, says nothing of whether it was taken.
        return error.reason == NOT_SENT or isinstance(error, ResourceExhausted)
    return passing(error) if call.method == "GET" else error.retryable


def passing(error: EmbatchError) -> bool:
    """Whether a read, or an upload, that ended so may succeed a moment later: an internal error may, too.

    What changes something else is left alone then: nobody knows how far it came.
    """
    return error.retryable or (isinstance(error, Internal) and error.reason != TOO_LARGE)
