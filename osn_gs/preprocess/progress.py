"""How long loops tell how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with (pieces of work done, pieces in all)."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""
