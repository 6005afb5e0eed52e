"""Calling a function in a process of its own, on one thread.

Structure from motion is many small matrices: linear algebra that splits each over several threads makes it seven
times slower on a busy machine, and the number of threads can be told only before the libraries are loaded. COLMAP's
messages stay out of the user's terminal this way, and should it crash, the caller does not.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

THREAD_SETTINGS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
MESSAGE_LENGTH = 2000  # characters of a failed process' last words


def call_in_own_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """`function(*args, **kwargs)`, whose arguments and result are pickled; `function` is found by its module and name.

    Raises:
        RuntimeError: the function raised, or its process ended in another way; tells its last words.
    """
    finished = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((function, args, kwargs)),
        env={
            **os.environ,
            **dict.fromkeys(THREAD_SETTINGS, "1"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        check=False,
    )
    if finished.returncode != 0:
        words = finished.stderr.decode(errors="replace").strip()[-MESSAGE_LENGTH:]
        raise RuntimeError(
            f"{function.__module__}.{function.__qualname__} ended with code {finished.returncode}: {words}"
        )
    return pickle.loads(finished.stdout)


def _serve() -> None:
    """Of the new process: read a call from stdin, write its result to stdout."""
    function, args, kwargs = pickle.load(sys.stdin.buffer)
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get among the result
    result = function(*args, **kwargs)
    with os.fdopen(answer, "wb") as stream:
        pickle.dump(result, stream)


if __name__ == "__main__":
    _serve()
