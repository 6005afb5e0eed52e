"""Cameras placed by hand."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from osn_gs.geometry.se3 import rigid_matrix


def orbit(
    cam_from_world: Float[Tensor, "4 4"],
    pivot_depth: float,
    yaw_degrees: float,
    pitch_degrees: float = 0.0,
    retreat: float = 0.0,
) -> Float[Tensor, "4 4"]:
    """The camera carried around the point `pivot_depth` ahead of it (OpenCV axes, camera units).

    Positive yaw moves it to its right, positive pitch up; it keeps looking at the point. At last it moves `retreat`
    straight back.
    """
    yaw, pitch = math.radians(yaw_degrees), math.radians(pitch_degrees)
    about_y = [[math.cos(yaw), 0.0, math.sin(yaw)], [0.0, 1.0, 0.0], [-math.sin(yaw), 0.0, math.cos(yaw)]]
    about_x = [[1.0, 0.0, 0.0], [0.0, math.cos(pitch), -math.sin(pitch)], [0.0, math.sin(pitch), math.cos(pitch)]]
    rotation = cam_from_world.new_tensor(about_x) @ cam_from_world.new_tensor(about_y)
    pivot = cam_from_world.new_tensor([0.0, 0.0, pivot_depth])
    backward = cam_from_world.new_tensor([0.0, 0.0, retreat])
    return rigid_matrix(rotation, pivot - rotation @ pivot + backward) @ cam_from_world
