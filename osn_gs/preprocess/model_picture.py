"""Cameras and points of every object, from above and from the side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from osn_gs.preprocess.sfm.object_model import ObjectModel

PIXELS_PER_INCH = 100
AXES_INCHES = 3.6
OBJECTS_IN_ROW = 2
POINTS_SHOWN = 4000
SHOWN_SHARE = 0.98  # of the points along each axis; the rest may lie far off
MARGIN = 0.06  # around what is shown


def draw_models(models: Sequence[ObjectModel], names: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Of every object two plots: its points and the cameras around it, seen from above and from the side.

    Both views stand on the axes of the middle frame's camera, in the object's own units.
    """
    in_row = min(OBJECTS_IN_ROW, len(models))
    rows = -(-len(models) // in_row)
    figure = Figure(figsize=(2 * AXES_INCHES * in_row, AXES_INCHES * rows), dpi=PIXELS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    pairs = figure.subplots(rows, 2 * in_row, squeeze=False).reshape(-1, 2)
    for k, (model, name) in enumerate(zip(models, names, strict=True)):
        above, beside = pairs[k]
        points, centres = _in_middle_camera(model)
        _draw_plane(above, points[:, [0, 2]], centres[:, [0, 2]], f"{k} {name}: from above", "right", "forward")
        up = np.array([1, -1])
        _draw_plane(beside, points[:, [2, 1]] * up, centres[:, [2, 1]] * up, "from the side", "forward", "up")
    for unused in pairs[len(models) :].flat:
        unused.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _in_middle_camera(model: ObjectModel) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "r 3"]]:
    """Some of the points, and the centres of the registered cameras, in the middle registered camera's frame."""
    poses = model.cam_from_obj[model.registered]
    centres = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    middle = poses[len(poses) // 2]
    points = model.points[:: -(-len(model.points) // POINTS_SHOWN)]
    return points @ middle[:3, :3].T + middle[:3, 3], centres @ middle[:3, :3].T + middle[:3, 3]


def _draw_plane(
    axes: Axes, points: Float[np.ndarray, "n 2"], centres: Float[np.ndarray, "r 2"], title: str, right: str, up: str
) -> None:
    axes.scatter(*points.T, s=2, color="0.6", linewidths=0)
    axes.plot(*centres.T, color="0.3", linewidth=0.8)
    axes.scatter(*centres.T, s=16, c=np.arange(len(centres)), cmap="viridis", zorder=3)
    tail = (1 - SHOWN_SHARE) / 2
    shown = np.concatenate([np.quantile(points, [tail, 1 - tail], axis=0), centres])
    lowest, highest = shown.min(0), shown.max(0)
    half = (0.5 + MARGIN) * max((highest - lowest).max(), 1e-9)
    middle = (lowest + highest) / 2
    axes.set(xlim=middle[0] + half * np.array([-1, 1]), ylim=middle[1] + half * np.array([-1, 1]))
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(right, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=7)
