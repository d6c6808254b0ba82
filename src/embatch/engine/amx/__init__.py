"""Our own encoder kernel for x86-64 processors with AMX: BERTs in bfloat16, in blocks without padding.

The kernel itself is C++ in the folder `kernel`, compiled when embatch is installed; `library` reaches it,
`reference` is what it is verified against whenever a model is loaded. A text's vector has the same bytes
alone, in any company, in any order, on any thread and after a restart.

Environment: `EMBATCH_AMX=off` leaves the kernel alone; `EMBATCH_AMX_LIBRARY` names another build of it.
"""

from __future__ import annotations

from embatch.engine.amx.engine import AmxEngine, load, unsupported
from embatch.engine.amx.library import Unfit, unavailable

__all__ = ["AmxEngine", "Unfit", "load", "unavailable", "unsupported"]
