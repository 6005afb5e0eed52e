"""Which pixels of held-out views the training frames show too, where the scene folder does not say (METHOD 4)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool

from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.preprocess.covisibility import covisible_pixels, write_covisible
from osn_gs.preprocess.feature_map import training_homographies
from osn_gs.scene.scene import Scene

MOST_POINTS = 5_000  # of the background, that tell how the cameras see its largest plane


def with_co_visible_pixels(
    scene: Scene, data: SceneData, views: tuple[HeldOutView, ...], folder: Path, on_view: Callable[[], None]
) -> tuple[HeldOutView, ...]:
    """The views with masks of co-visible pixels: their own, else from optical flow to all training frames.

    Masks made here are kept in `folder` for the next time, each under its view's number and a digest of its image.
    `on_view` is called after each view.
    """
    found = []
    for index, view in enumerate(views):
        mask = view.co_visible
        if mask is None:
            digest = hashlib.sha256(view.image.numpy().tobytes()).hexdigest()[:8]
            path = folder / f"{index:04d}_{digest}.png"
            array = _read_mask(path, view.image.shape[:2])
            if array is None:
                array = _from_flow(scene, data, view)
                write_covisible(path, array)
            mask = torch.from_numpy(array)
        found.append(dataclasses.replace(view, co_visible=mask))
        on_view()
    return tuple(found)


@torch.no_grad()
def _from_flow(scene: Scene, data: SceneData, view: HeldOutView) -> Bool[np.ndarray, "h w"]:
    background = scene.objects[0]
    points = background.gaussians.means[:: max(1, len(background.gaussians) // MOST_POINTS)]
    homographies = training_homographies(
        points.double().cpu().numpy(),
        view.cam_from_background.double().numpy(),
        view.intrinsics.double().numpy(),
        background.cam_from_obj.double().cpu().numpy(),
        data.intrinsics.double().numpy(),
    )
    return covisible_pixels(view.image.numpy(), data.images.numpy(), homographies)


def _read_mask(path: Path, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"] | None:
    """A mask made before; None where there is none, or one of another size."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
    return None if pixels is None or pixels.shape != tuple(shape) else pixels > 0
