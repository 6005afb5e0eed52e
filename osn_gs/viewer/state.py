"""What is shown, and who hears of its changes: one state for all who share it, their own for those who do not."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from osn_gs.errors import OsnGsError
from osn_gs.export.renderings import COLOURINGS, Colouring, World
from osn_gs.object_scales.known_sizes import KnownSize

FASTEST = 60.0  # frames a second
SETTLE_SECONDS = 0.25  # without a new request, after which a picture may take its time


@dataclass(frozen=True)
class ViewState:
    """One moment of one world, and the worlds at hand.

    `world` is shown; its name says where it comes from. `choices` are what "next" and "previous" go through, `choice`
    the one shown, None once a slider was moved. `held[k]`: object k keeps its scale when the others are solved again;
    `shown[k]`: object k is drawn. `seed` is that of the last surprise. Raises OsnGsError for what cannot be shown: a
    client may send any number as a slider's, and what it puts into a shared state would stop everyone's page.
    """

    world: World
    choices: tuple[World, ...]
    shown: tuple[bool, ...]
    held: tuple[bool, ...]
    choice: int | None = 0
    time_step: int = 0
    playing: bool = False
    frames_per_second: float = 10.0
    colouring: Colouring = "colour"
    known_sizes: tuple[KnownSize, ...] = ()
    kept: tuple[World, ...] = ()
    comparing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(math.isfinite(scale) and scale > 0 for scale in self.world.object_scales):
            raise OsnGsError(f"object scales {self.world.object_scales}: expected finite numbers above 0.")
        if self.time_step < 0:
            raise OsnGsError(f"frame {self.time_step}: expected 0 or more.")
        if not 0 < self.frames_per_second <= FASTEST:
            raise OsnGsError(f"{self.frames_per_second:g} frames a second: expected more than 0, {FASTEST:g} at most.")
        if self.colouring not in COLOURINGS:
            raise OsnGsError(f"colours {self.colouring!r}: expected one of {', '.join(COLOURINGS)}.")


class Channel:
    """A state and those who listen to it. Changes come from many threads; listeners look up the newest state."""

    def __init__(self, state: ViewState) -> None:
        self.state = state
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def change(self, **fields: object) -> None:
        """Replace fields of the state and tell the listeners, if anything is new."""
        self.update(lambda state: dataclasses.replace(state, **fields))

    def update(self, step: Callable[[ViewState], ViewState]) -> None:
        """Make the next state from the one at hand and tell the listeners, if anything is new."""
        with self._lock:
            before, self.state = self.state, step(self.state)
            changed = self.state != before
            listeners = tuple(self._listeners)
        if changed:
            for listener in listeners:
                listener()

    def listen(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.append(listener)

    def leave(self, listener: Callable[[], None]) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)


class NewestWins:
    """A thread that does a piece of work whenever asked; requests that come while it is at work become one.

    `work(False)` follows a request, `work(True)` once when no other came for a while.
    """

    def __init__(self, name: str, work: Callable[[bool], None]) -> None:
        self._work = work
        self._asked = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        self._asked.set()

    def stop(self) -> None:
        """End after the work at hand."""
        self._stopped = True
        self._asked.set()

    def _loop(self) -> None:
        settled = True
        while True:
            asked = self._asked.wait(None if settled else SETTLE_SECONDS)
            self._asked.clear()
            if self._stopped:
                return
            settled = not asked
            self._work(settled)
