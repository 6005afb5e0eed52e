"""Where kernels run: whether Numba is there to compile them, and one thread pool for all of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

CHUNKS_PER_THREAD = 8  # pieces of work differ in cost; more pieces than threads even that out

_num_threads: int | None = None
_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] | None = None


def numba_is_installed() -> bool:
    """Whether the kernels can be compiled here; without Numba, plain torch and NumPy do their work."""
    return importlib.util.find_spec("numba") is not None


def num_threads() -> int:
    """Threads the kernels run on: what `set_num_threads` asked for, else the processors this process may use.

    Torch's own number is another matter: its small operations are better off with one.
    """
    if _num_threads is not None:
        return _num_threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(count: int | None) -> None:
    """Run kernels on `count` threads from now on; None takes the default again. Results do not depend on it."""
    global _num_threads
    _num_threads = count


def run_over_range(kernel: Callable, count: int, *args, smallest_chunk: int = 1) -> None:
    """Call `kernel(first, last, *args)` over chunks that cover range(count), on `num_threads()` threads.

    `kernel` must release the GIL and must not write anything that two chunks share. An exception in a
    chunk is raised here.
    """
    threads = num_threads()
    chunk = max(smallest_chunk, -(-count // (CHUNKS_PER_THREAD * threads)))
    if threads == 1 or count <= chunk:
        kernel(0, count, *args)
        return
    pool = _get_pool(threads)
    pieces = [pool.submit(kernel, first, min(first + chunk, count), *args) for first in range(0, count, chunk)]
    for piece in pieces:
        piece.result()


def _get_pool(threads: int) -> ThreadPoolExecutor:
    """The pool, made anew when the number of threads changed or after a fork, which threads do not survive."""
    global _pool, _pool_key
    key = (os.getpid(), threads)
    if _pool is None or _pool_key != key:
        _pool, _pool_key = ThreadPoolExecutor(threads, thread_name_prefix="osn_gs"), key
    return _pool
