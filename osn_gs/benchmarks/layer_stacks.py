"""Exact layer depths of solids standing in a room: what the oracle and the samplers are timed and tested on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from osn_gs.errors import ConfigError
from osn_gs.object_scales.ranges import initial_scale_range

NEAR, FAR = 1.0, 8.0
MAX_IDS = 256  # object ids are bytes
CAMERA_DISTANCE, CAMERA_HEIGHT = 2.8, 1.1
ROOM_HALF_WIDTH = 5.0
FIELD_OF_VIEW = math.radians(50)
RING_RADII = (0.35, 0.95)  # solids stand on two rings, inner and outer in turn, so that they occlude each other


@dataclass(frozen=True)
class LayerStack:
    """T frames of K layers in unit object scale, and the scales at which they fit together."""

    object_ids: UInt8[Tensor, "t h w"]
    layer_depths: Float[Tensor, "t k h w"]
    scale_ranges: Float[Tensor, "k 2"]
    true_scales: Float[Tensor, "k"]


@dataclass(frozen=True)
class _Box:
    """An upright box standing on the ground: its middle turns about the room's middle and about itself."""

    ring: float
    angle: float
    turn_per_frame: float
    half_width: float
    half_depth: float
    height: float


def boxes_in_a_room(
    num_objects: int,
    num_frames: int,
    height: int,
    width: int,
    generator: torch.Generator,
    depth_noise: float = 0.0,
    box_size: float = 1.0,
) -> LayerStack:
    """K - 1 turning boxes on the floor of a room seen from a moving camera; object 0 is the room.

    `depth_noise` is the relative standard deviation of every layer depth, the mask stays exact. Each box has its own
    random unit of length, as structure-from-motion would give it. Raises `ConfigError` if a box is seen in no frame.
    """
    assert 2 <= num_objects <= MAX_IDS, f"2 to {MAX_IDS} objects have a byte for their id, got {num_objects}"
    boxes = [_draw_box(index, num_objects - 1, box_size, generator) for index in range(num_objects - 1)]
    depths = torch.stack([_frame_depths(boxes, t, num_frames, height, width) for t in range(num_frames)])
    object_ids = depths.argmin(dim=1).to(torch.uint8)
    units, ranges = [1.0], [(1.0, 1.0)]
    for k in range(1, num_objects):
        seen = [depths[t, k][object_ids[t] == k] for t in range(num_frames)]
        if not (object_ids == k).any():
            raise ConfigError(f"box {k} is hidden in every frame; take fewer objects, more frames or larger images.")
        unit = math.exp(0.8 * float(torch.rand((), generator=generator) - 0.5))
        initial = initial_scale_range([frame / unit for frame in seen], NEAR, FAR, name=f"box {k}")
        units.append(unit / initial.unit_factor)
        ranges.append((initial.lo, initial.hi))
    true_scales = torch.tensor(units, dtype=torch.float64)
    noise = 1 + depth_noise * torch.randn(depths.shape, generator=generator, dtype=depths.dtype)
    return LayerStack(
        object_ids=object_ids,
        layer_depths=depths * noise / true_scales[:, None, None],
        scale_ranges=torch.tensor(ranges, dtype=torch.float64),
        true_scales=true_scales,
    )


def _draw_box(index: int, num_boxes: int, size: float, generator: torch.Generator) -> _Box:
    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    return _Box(
        ring=RING_RADII[index % 2],
        angle=2 * math.pi * index / num_boxes,
        turn_per_frame=between(-0.01, 0.01),
        half_width=size * between(0.12, 0.26),
        half_depth=size * between(0.12, 0.26),
        height=size * between(0.2, 0.6),
    )


def _frame_depths(boxes: list[_Box], frame: int, num_frames: int, height: int, width: int) -> Float[Tensor, "k h w"]:
    """True z-depth of the room and of every box alone, inf where a box does not cover."""
    azimuth = 0.8 * (frame / max(num_frames - 1, 1) - 0.5)
    origin = torch.tensor(
        [CAMERA_DISTANCE * math.sin(azimuth), -CAMERA_DISTANCE * math.cos(azimuth), CAMERA_HEIGHT], dtype=torch.float64
    )
    directions = _rays_toward(torch.tensor([0.0, 0.0, 0.2], dtype=torch.float64) - origin, height, width)
    layers = [_exit_depth(origin, directions)]
    for box in boxes:
        turn = box.angle + box.turn_per_frame * frame
        middle = torch.tensor([box.ring * math.cos(turn), box.ring * math.sin(turn), box.height / 2])
        half = torch.tensor([box.half_width, box.half_depth, box.height / 2], dtype=torch.float64)
        layers.append(_entry_depth(_turn_z(origin - middle, -3 * turn), _turn_z(directions, -3 * turn), half))
    return torch.stack(layers)


def _rays_toward(view_axis: Float[Tensor, "3"], height: int, width: int) -> Float[Tensor, "h w 3"]:
    """World ray directions with z-depth 1 of a camera that looks along `view_axis`, world z up."""
    forward = view_axis / view_axis.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right = right / right.norm()
    down = torch.linalg.cross(forward, right)
    focal = width / 2 / math.tan(FIELD_OF_VIEW / 2)
    u = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / focal
    v = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) / focal
    return forward + u[None, :, None] * right + v[:, None, None] * down


def _turn_z(vectors: Float[Tensor, "*batch 3"], angle: float) -> Float[Tensor, "*batch 3"]:
    """Vectors turned about the world's z axis."""
    x, y, z = vectors.unbind(-1)
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)


def _exit_depth(origin: Float[Tensor, "3"], directions: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w"]:
    """Where rays leave the room (floor at z = 0, no ceiling in sight)."""
    lower = torch.tensor([-ROOM_HALF_WIDTH, -ROOM_HALF_WIDTH, 0.0], dtype=torch.float64)
    upper = torch.tensor([ROOM_HALF_WIDTH, ROOM_HALF_WIDTH, 10.0], dtype=torch.float64)
    return torch.maximum((lower - origin) / directions, (upper - origin) / directions).amin(dim=-1)


def _entry_depth(
    origin: Float[Tensor, "3"], directions: Float[Tensor, "h w 3"], half_extents: Float[Tensor, "3"]
) -> Float[Tensor, "h w"]:
    """Where rays enter a box about the origin; inf where they miss it."""
    one, other = (-half_extents - origin) / directions, (half_extents - origin) / directions
    entry, leave = torch.minimum(one, other).amax(dim=-1), torch.maximum(one, other).amin(dim=-1)
    return torch.where((entry < leave) & (entry > 0), entry, torch.inf)
