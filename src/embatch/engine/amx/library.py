"""The compiled kernel, reached through ctypes; `kernel/embatch_amx.h` says what each function does."""

from __future__ import annotations

import ctypes
import os
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.engine.machine import has_amx
from embatch.engine.protocol import RowsRefused
from embatch.errors import EngineTrouble, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BLOCK: Final = 512
"""Tokens that go through the whole net together, and of the longest text."""
MOST_HIDDEN: Final = 1024
NAME: Final = "libembatch_amx.so"
SWITCH: Final = "EMBATCH_AMX"
ELSEWHERE: Final = "EMBATCH_AMX_LIBRARY"
_INTERFACE: Final = 1
_WHY_NOT: Final = {
    1: "this processor has no AMX with bfloat16",
    2: "the operating system or hypervisor does not keep the registers of AMX",
    3: "the operating system does not let this process use AMX (Linux 5.16 or newer is needed)",
}
_NO_MEMORY, _BAD_WEIGHTS, _BAD_TOKEN, _BAD_LENGTH = 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class Form:
    """What the kernel computes: a BERT of these sizes. The fields are those of `embatch_amx_shape`."""

    hidden: int
    inner: int
    layers: int
    heads: int
    words: int
    positions: int
    cls: bool
    """Whether the first token's vector is the text's, instead of the mean of all."""
    normalize: bool
    epsilon: float


class _Shape(ctypes.Structure):
    _fields_ = (
        ("hidden", ctypes.c_int32),
        ("inner", ctypes.c_int32),
        ("layers", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("vocabulary", ctypes.c_int32),
        ("positions", ctypes.c_int32),
        ("pooling", ctypes.c_int32),
        ("normalize", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
    )


class Unfit(InvalidArgument):
    """The kernel does not give this model's vectors as they should be; another engine may."""


class Library:
    """The functions of one compiled library.

    Raises:
        InvalidArgument: the file is no library, or one of another version.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._c = ctypes.CDLL(str(file))
            self._c.embatch_amx_interface.restype = ctypes.c_int
            interface = self._c.embatch_amx_interface()
        except (OSError, AttributeError) as error:
            raise InvalidArgument(f"{file} is not the library of the kernel", field="engine") from error
        if interface != _INTERFACE:
            raise InvalidArgument(f"{file} belongs to another version of embatch", field="engine")
        floats = np.ctypeslib.ndpointer(np.float32, flags=("C_CONTIGUOUS", "WRITEABLE"))
        ids = np.ctypeslib.ndpointer(np.int32, 1, flags="C_CONTIGUOUS")
        offsets = np.ctypeslib.ndpointer(np.int64, 1, flags="C_CONTIGUOUS")
        model, tensors = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        for name, kind, arguments in (
            ("supported", ctypes.c_int, ()),
            ("load", ctypes.c_int, (ctypes.POINTER(_Shape), tensors, ctypes.POINTER(model))),
            ("forward", ctypes.c_int, (model, ids, offsets, ctypes.c_int32, floats)),
            ("exact_rows", ctypes.c_int64, (model,)),
            ("free", None, (model,)),
        ):
            function = getattr(self._c, f"embatch_amx_{name}")
            function.restype, function.argtypes = kind, arguments

    def refusal(self) -> str | None:
        """Return why this process cannot run the kernel; `None` if it can."""
        found = self._c.embatch_amx_supported()
        return _WHY_NOT.get(found, f"reason {found}") if found else None

    def load(self, form: Form, tensors: Sequence[NDArray[np.float32]]) -> PackedModel:
        """Pack a model. `tensors` in the order of `embatch_amx_load`, matrices as (outputs, inputs).

        Raises:
            InvalidArgument: the kernel does not compute this form.
            Unfit: a weight has no finite value in bfloat16.
            EngineTrouble: there is no memory for it.
        """
        shape = _Shape(*astuple(form))
        kept = [np.ascontiguousarray(tensor, np.float32) for tensor in tensors]
        places = (ctypes.c_void_p * len(kept))(*(tensor.ctypes.data for tensor in kept))
        model = ctypes.c_void_p()
        status = self._c.embatch_amx_load(ctypes.byref(shape), places, ctypes.byref(model))
        if status == _BAD_WEIGHTS:
            raise Unfit("a weight of the model is infinite or not a number in bfloat16", field="model")
        if status == _NO_MEMORY:
            raise EngineTrouble("there is no memory for the model")
        if status:
            raise InvalidArgument("the kernel does not compute a model of this shape", field="model")
        return PackedModel(self._c, model, form, kept[:2])


class PackedModel:
    """A packed model, for any number of threads at the same time. Not used after `free`."""

    def __init__(
        self, library: ctypes.CDLL, model: ctypes.c_void_p, form: Form, tables: Sequence[NDArray[np.float32]]
    ) -> None:
        self._c, self._model, self.form = library, model, form
        self._tables = tables  # read in place: they must live as long as the model

    def forward(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the vectors of the rows of token ids: float32 (len(rows), hidden), in their order.

        Rows share a block of 512 tokens, in the order they come, while they fit; what stands in a block
        together changes the time, never a byte.

        Raises:
            RowsRefused: a token id is not of the model, or a row is too long for it.
            EngineTrouble: there is no memory.
        """
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        ids = np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32, copy=False)
        vectors = np.empty((len(rows), self.form.hidden), np.float32)
        status = self._c.embatch_amx_forward(self._model, ids, offsets, len(rows), vectors)
        if status == _BAD_TOKEN:
            raise RowsRefused("a token id is not of this model", field="rows")
        if status == _BAD_LENGTH:
            raise RowsRefused("a row has more tokens than the model takes", field="rows")
        if status:
            raise EngineTrouble("there is no memory for a forward pass")
        return vectors

    @property
    def exact_rows(self) -> int:
        """How often the softmax of a row needed its exact form since the model was loaded."""
        return int(self._c.embatch_amx_exact_rows(self._model))

    def free(self) -> None:
        """Give the memory back. Only once, and while no call runs."""
        self._c.embatch_amx_free(self._model)


def unavailable() -> str | None:
    """Return why the kernel cannot be used on this machine; `None` if it can."""
    switch = os.environ.get(SWITCH, "auto")
    if switch == "off":
        return f"switched off by {SWITCH}=off"
    if switch != "auto":
        raise InvalidArgument(f"{SWITCH} must be auto or off", field=SWITCH)
    file = _file()
    if not file.is_file():
        if not has_amx():
            return _WHY_NOT[1]
        return (
            "its library is not part of this installation: install a wheel for this platform, or a C++ "
            "compiler (gcc 11, clang 14 or newer) and then embatch again"
        )
    try:
        return opened(file).refusal()
    except InvalidArgument as error:
        return error.message


def current() -> Library:
    """Return the library of this installation.

    Raises:
        InvalidArgument: it cannot be used here; the message says why.
    """
    problem = unavailable()
    if problem:
        raise InvalidArgument(f"the amx engine cannot be used: {problem}", field="engine")
    return opened(_file())


@cache
def opened(file: Path) -> Library:
    """Return the library in a file, loaded once."""
    return Library(file)


def _file() -> Path:
    return Path(os.environ.get(ELSEWHERE) or Path(__file__).with_name(NAME))
