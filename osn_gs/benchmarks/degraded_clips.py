"""A synthetic set's images and masks as a user would bring them: clean, or with one thing made worse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from osn_gs.data.osn_files import Transforms, read_image_sequence, read_mask_sequence

Variant = Literal["clean", "dilate2", "erode2", "jpeg50", "half", "focal-5%", "focal+5%", "focal-unknown"]
BORDER_PIXELS = 2  # by which masks grow or shrink
JPEG_QUALITY = 50
FOCAL_FACTORS = {"focal-5%": 0.95, "focal+5%": 1.05}


@dataclass(frozen=True)
class DegradedClip:
    """What `prepare` gets to see. `kept` are the set's training frames it is made of; `focal` is in pixels."""

    images: Path
    masks: Path
    focal: float | None
    kept: Int[np.ndarray, "t"]


def write_degraded_clip(folder: Path, transforms: Transforms, variant: Variant) -> DegradedClip:
    """Write `folder`/images and `folder`/masks (id maps) from a set's images_train and segm_sam.

    Files keep the numbers the frames have in the set.

    Raises:
        DatasetError: an image or a mask is missing or does not fit the others.
    """
    data = transforms.path.parent
    images = read_image_sequence(data / "images_train", transforms)
    masks = read_mask_sequence(data / "segm_sam", transforms)
    kept = np.arange(0, len(images), 2 if variant == "half" else 1)
    clip = DegradedClip(folder / "images", folder / "masks", degraded_focal(transforms.focal, variant), kept)
    for path in (clip.images, clip.masks):
        path.mkdir(parents=True)
    for frame in kept:
        _write_image(clip.images, frame, images[frame], variant)
        np.save(clip.masks / f"{frame:04d}.npy", degraded_ids(masks[frame], variant))
    return clip


def degraded_focal(focal: float, variant: Variant) -> float | None:
    """The focal length that preparation is told."""
    return None if variant == "focal-unknown" else focal * FOCAL_FACTORS.get(variant, 1.0)


def degraded_ids(object_ids: UInt8[np.ndarray, "h w"], variant: Variant) -> UInt8[np.ndarray, "h w"]:
    """Masks of moving objects grown over what surrounds them, the higher id winning, or shrunk; the image's edge
    is no border.
    """
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BORDER_PIXELS + 1, 2 * BORDER_PIXELS + 1))
    if variant == "dilate2":
        return cv2.dilate(object_ids, disk)
    if variant == "erode2":
        inside = cv2.erode(object_ids, disk) == cv2.dilate(object_ids, disk)
        return np.where(inside, object_ids, 0).astype(np.uint8)
    return object_ids


def _write_image(folder: Path, number: int, image: UInt8[np.ndarray, "h w 3"], variant: Variant) -> None:
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]) if variant == "jpeg50" else (".png", [])
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), options)
    (folder / f"{number:04d}{suffix}").write_bytes(encoded.tobytes())
