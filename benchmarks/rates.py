"""What this machine can multiply and move: products of matrices and passes over memory, thread by thread."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

# Each of our threads multiplies for itself. In time only where nothing has loaded numpy before.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from embatch.engine.machine import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Product = tuple[int, int, int]
    """Rows, inner size and columns of a product of matrices."""
    Maker = Callable[[int], Callable[[], object]]
    """Makes for a thread, by its number, the work that it repeats."""

SECONDS: Final = 0.5
"""Of one measurement of a rate."""
NUMBERS: Final = 32 << 20
"""float32 of each array whose memory is measured, all threads together: far more than any cache holds."""


def rate(maker: Maker, amount: float, threads: int) -> float:
    """Return how much a second, `amount` each time, so many threads do together; they start as one."""
    works = [maker(number) for number in range(threads)]
    for work in works:  # pages are touched and kernels compiled
        work()

    def repeat(work: Callable[[], object]) -> float:
        begun, times = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < SECONDS:
            work()
            times += 1
        return times * amount / spent

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(repeat, works))


def numpy_product(product: Product) -> Maker:
    """Return the maker of a float32 product by OpenBLAS, which takes one thread for each."""
    rows, inner, columns = product

    def make(number: int) -> Callable[[], object]:
        random = np.random.default_rng(number)
        left, right = (random.standard_normal(of, np.float32) for of in ((rows, inner), (inner, columns)))
        out = np.empty((rows, columns), np.float32)
        return lambda: np.matmul(left, right, out=out)

    return make


def openvino_product(product: Product, precision: str, threads: int) -> Maker:
    """Return the maker of a product by OpenVINO, each on a stream of its own with one thread."""
    rows, inner, columns = product
    random = np.random.default_rng(0)
    given = ops.parameter([rows, inner], np.float32)
    weight = ops.constant(random.standard_normal((columns, inner), np.float32))
    graph = ov.Model([ops.matmul(given, weight, transpose_a=False, transpose_b=True)], [given], "product")
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",
    }
    compiled = ov.Core().compile_model(graph, "CPU", properties)

    def make(number: int) -> Callable[[], object]:
        request = compiled.create_infer_request()
        content = np.random.default_rng(number).standard_normal((rows, inner), np.float32)
        request.set_input_tensor(ov.Tensor(content, shared_memory=True))

        def work() -> None:
            request.start_async()
            request.wait()

        return work

    return make


def precisions() -> list[str]:
    """Return what OpenVINO can multiply in on this processor."""
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["f32", *(["bf16"] if "BF16" in able else [])]


def matrix_rate(library: str, precision: str, product: Product, threads: int) -> float:
    """Return operations a second of one product in one library."""
    rows, inner, columns = product
    maker = numpy_product(product) if library == "numpy" else openvino_product(product, precision, threads)
    return rate(maker, 2.0 * rows * inner * columns, threads)


def survey(products: Sequence[Product]) -> list[dict[str, Any]]:
    """Return the matrix rate of every library, precision, product and number of threads."""
    return [
        {
            "library": library,
            "precision": precision,
            "product": product,
            "threads": threads,
            "rate": matrix_rate(library, precision, product, threads),
        }
        for threads in sorted({1, cores()})
        for library, precision in (("numpy", "f32"), *(("openvino", one) for one in precisions()))
        for product in products
    ]


def memory_rates(threads: int) -> dict[str, float]:
    """Return bytes a second of copy (a read, a write) and of triad (two passes: three reads, two writes)."""
    each = NUMBERS // threads

    def arrays() -> list[Any]:
        return [np.ones(each, np.float32) for _ in range(3)]

    def copy(_: int) -> Callable[[], object]:
        out, given, _third = arrays()
        return lambda: np.copyto(out, given)

    def triad(_: int) -> Callable[[], object]:
        out, one, other = arrays()
        return lambda: np.add(one, np.multiply(other, np.float32(3), out=out), out=out)

    return {"copy": rate(copy, 2 * 4.0 * each, threads), "triad": rate(triad, 5 * 4.0 * each, threads)}
