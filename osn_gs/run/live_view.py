"""A run in the browser while it trains."""

from __future__ import annotations

import contextlib
import copy
import time

import viser
from rich.console import Console

from osn_gs.data.scene_data import SceneData
from osn_gs.run.serve import address
from osn_gs.training.joint_optimizer import JointOptimizer, RoundReport, StepReport
from osn_gs.viewer.snapshot import take_snapshot
from osn_gs.viewer.viewer import Viewed, Viewer
from osn_gs.viewer.worlds import Worlds

LEAST_SECONDS = 3.0  # between two uploads
LARGEST_SHARE = 0.05  # of the time that goes into uploads


class LiveView:
    """Shows the Gaussians as they are every few seconds, and the set as every round leaves it.

    Costs nothing while nobody looks, and at most `LARGEST_SHARE` of the training's time for uploads otherwise.
    """

    def __init__(self, server: viser.ViserServer, optimizer: JointOptimizer, data: SceneData) -> None:
        self._server = server
        self._optimizer = optimizer
        self._data = data
        self._worlds = self._current_worlds()
        self._viewer = Viewer(server, self._viewed())
        self._next = time.monotonic() + LEAST_SECONDS

    def after_step(self, report: StepReport | RoundReport) -> None:
        """Show what a step has changed, where it is time."""
        if isinstance(report, RoundReport):
            self._worlds = self._current_worlds()
            self._viewer.show(self._viewed())
        elif self._viewer.sessions and time.monotonic() >= self._next:
            started = time.monotonic()
            self._viewer.show(self._viewed())
            cost = time.monotonic() - started
            self._next = started + max(LEAST_SECONDS, cost / LARGEST_SHARE)

    def show_until_interrupted(self, viewed: Viewed, console: Console) -> None:
        """Show the finished run until Ctrl-C."""
        self._viewer.show(viewed)
        console.print(f"The viewer stays open at {address(self._server)}; Ctrl-C here ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            self._server.sleep_forever()

    def close(self) -> None:
        self._viewer.close()

    def _current_worlds(self) -> Worlds:
        optimizer = self._optimizer
        return Worlds(
            optimizer.scene.object_names,
            self._data.scale_ranges,
            optimizer.network,
            optimizer.oracle,
            optimizer.accuracy_threshold() if optimizer.rounds else None,
            (),
        )

    def _viewed(self) -> Viewed:
        scene = copy.deepcopy(self._optimizer.scene)
        return Viewed(self._data.name, scene, take_snapshot(scene), self._worlds, self._data.images.numpy())
