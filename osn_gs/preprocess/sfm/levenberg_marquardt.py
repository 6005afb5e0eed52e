"""Levenberg-Marquardt on the reduced camera system (Triggs et al., "Bundle Adjustment - A Modern Synthesis", 2000).

Dense linear algebra: made for some hundred frames and some thousand points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float

Model = TypeVar("Model")


@dataclass(frozen=True)
class System:
    """Normal equations: cameras [c c], their gradient, points [n 3 3], theirs, and what couples both.

    "Cameras" are all parameters but the points: whatever else is adjusted counts among them.
    """

    cameras: Float[np.ndarray, "c c"]
    cameras_gradient: Float[np.ndarray, "c"]
    points: Float[np.ndarray, "n 3 3"]
    points_gradient: Float[np.ndarray, "n 3"]
    coupling: Float[np.ndarray, "n c 3"] = field(repr=False)

    def step(self, damping: float, hold_cameras: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """One damped Gauss-Newton step of the cameras [c] and the points [n 3]."""
        reduced, gradient, inverse = self.without_points(damping)
        if hold_cameras:
            camera_step = np.zeros(len(gradient))
        else:
            diagonal = np.diag(self.cameras)
            camera_step = -np.linalg.solve(reduced + np.diag(damping * diagonal + 1e-9 * diagonal.max()), gradient)
        towards = self.points_gradient + np.einsum("nci,c->ni", self.coupling, camera_step)
        return camera_step, -np.einsum("nij,nj->ni", inverse, towards)

    def without_points(self, damping: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The Schur complement [c c], its gradient [c] and the inverse point blocks [n 3 3]."""
        diagonal = np.einsum("nii->ni", self.points)
        ridge = damping * diagonal + 1e-12 * diagonal.max() + 1e-30
        inverse = np.linalg.inv(self.points + ridge[:, :, None] * np.eye(3))
        num_points, size, _ = self.coupling.shape
        carried = (self.coupling @ inverse).transpose(1, 0, 2).reshape(size, 3 * num_points)
        coupling = self.coupling.transpose(1, 0, 2).reshape(size, 3 * num_points)
        reduced = self.cameras - carried @ coupling.T
        return reduced, self.cameras_gradient - carried @ self.points_gradient.ravel(), inverse


def minimize(
    model: Model,
    cost_of: Callable[[Model], float],
    equations_of: Callable[[Model], System],
    stepped: Callable[[Model, System, float], Model],
    max_steps: int,
    tolerance: float,
) -> tuple[Model, float, int]:
    """The model after at most `max_steps` steps that lower its cost, that cost, and how many were tried.

    `stepped(model, system, damping)` is the model after one damped step. Stops when a step lowers the cost by less
    than the share `tolerance`.
    """
    cost, damping, steps = cost_of(model), 1e-4, 0
    while steps < max_steps:
        steps += 1
        system = equations_of(model)
        improved = False
        while damping < 1e8:
            candidate = stepped(model, system, damping)
            candidate_cost = cost_of(candidate)
            if candidate_cost < cost:
                improved = True
                break
            damping *= 10
        if not improved:
            break
        gain, model, cost = cost - candidate_cost, candidate, candidate_cost
        damping = max(damping / 5, 1e-10)
        if gain <= tolerance * cost:
            break
    return model, cost, steps
