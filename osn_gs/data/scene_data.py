"""What training needs to know of one video, in the package's conventions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class SparsePoints:
    """Points of one object's structure-from-motion, as observed in the frames.

    `pixels` are continuous image positions (pixel centres at +0.5), `depths` the z-depth in the
    object's own units, `errors` the reprojection error in pixels.
    """

    frames: Int[Tensor, "m"]
    pixels: Float[Tensor, "m 2"]
    depths: Float[Tensor, "m"]
    errors: Float[Tensor, "m"]
    weights: Float[Tensor, "m"]

    def in_frame(self, time_step: int, device: torch.device) -> SparsePoints:
        """Those that one frame shows, in single precision on a device."""
        seen = self.frames == time_step
        floats = (self.pixels, self.depths, self.errors, self.weights)
        return SparsePoints(self.frames[seen].to(device), *(values[seen].float().to(device) for values in floats))


@dataclass(frozen=True)
class HeldOutView:
    """One image that training never saw, with what is known of it.

    The camera stands in the background's frame and units and has `intrinsics` of its own (some real sets
    film tests with another lens); the objects stand as at training frame `time_step`. `object_ids` are true
    ids and `depth` is true z-depth (any unit), where the set has them. Depth is as the set's files hold it:
    a pixel of unknown depth may be NaN, infinite, zero or negative, and says nothing of the scene. `co_visible` is
    True where enough training frames see what the pixel shows (METHOD 4), where that is known.
    """

    name: str
    time_step: int
    cam_from_background: Float[Tensor, "4 4"]
    image: UInt8[Tensor, "h w 3"]
    object_ids: UInt8[Tensor, "h w"] | None = None
    depth: Float[Tensor, "h w"] | None = None
    co_visible: Bool[Tensor, "h w"] | None = None
    intrinsics: Float[Tensor, "3 3"] = field(kw_only=True)


@dataclass(frozen=True)
class SceneTruth:
    """True values of a synthetic scene, for reports only; training never reads them.

    `object_scales` are relative to the background and in the units of `SceneData.scale_ranges`;
    `background_scale` times the background's units gives those of the set's depths and poses.
    `layer_depths` are the z-depths of every object rendered alone, in the object's own units, inf
    where it does not cover the pixel: hidden surfaces included. Where a set does not bring them,
    `true_layers.true_layer_depths` may find them.
    """

    object_scales: Float[Tensor, "k"]
    background_scale: float
    layer_depths: Float[Tensor, "t k h w"] | None = None


@dataclass(frozen=True)
class SceneData:
    """One video of K objects over T frames; object 0 is the static background.

    `cam_from_obj[k, t]` maps canonical points of object k, in the object's own units, to OpenCV camera
    coordinates of frame t; an object scale s multiplies the result (METHOD: p_cam = s R^T (x - c)).
    The background's units are the scene's: its scale is 1. `scale_ranges[k]` is the initial range
    (lo, hi) of object k, middle 1; row 0 is (1, 1).
    """

    name: str
    images: UInt8[Tensor, "t h w 3"]
    object_ids: UInt8[Tensor, "t h w"]
    intrinsics: Float[Tensor, "3 3"]
    cam_from_obj: Float[Tensor, "k t 4 4"]
    visible: Bool[Tensor, "k t"]
    sparse_points: tuple[SparsePoints, ...]
    scale_ranges: Float[Tensor, "k 2"]
    near: float
    far: float
    object_names: tuple[str, ...]
    held_out: dict[str, tuple[HeldOutView, ...]] = field(default_factory=dict)
    truth: SceneTruth | None = None
    folder: Path | None = None

    @property
    def num_objects(self) -> int:
        return self.cam_from_obj.shape[0]

    @property
    def num_frames(self) -> int:
        return self.images.shape[0]

    @property
    def height(self) -> int:
        return self.images.shape[1]

    @property
    def width(self) -> int:
        return self.images.shape[2]
