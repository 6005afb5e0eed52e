"""One thread pool for all kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNKS_PER_THREAD = 8  # pieces of work differ in cost; more pieces than threads even that out

_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] | None = None


def run_over_range(kernel: Callable, count: int, *args, smallest_chunk: int = 1) -> None:
    """Call `kernel(first, last, *args)` over chunks that cover range(count), on as many threads as torch uses.

    `kernel` must release the GIL and must not write anything that two chunks share. An exception in a
    chunk is raised here.
    """
    num_threads = torch.get_num_threads()
    chunk = max(smallest_chunk, -(-count // (CHUNKS_PER_THREAD * num_threads)))
    if num_threads == 1 or count <= chunk:
        kernel(0, count, *args)
        return
    pool = _get_pool(num_threads)
    pieces = [pool.submit(kernel, first, min(first + chunk, count), *args) for first in range(0, count, chunk)]
    for piece in pieces:
        piece.result()


def _get_pool(num_threads: int) -> ThreadPoolExecutor:
    """The pool, made anew when the number of threads changed or after a fork, which threads do not survive."""
    global _pool, _pool_key
    key = (os.getpid(), num_threads)
    if _pool is None or _pool_key != key:
        _pool, _pool_key = ThreadPoolExecutor(num_threads, thread_name_prefix="osn_gs"), key
    return _pool
