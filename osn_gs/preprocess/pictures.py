"""Pictures of what preparation did: object ids over images, sheets of frames under captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from osn_gs.files import write_bytes_atomic

FILL = 0.45  # opacity of an object's colour over the image
SHEET_WIDTH = 1600  # pixels
GAP = 4  # pixels around the pictures of a sheet
CAPTION_HEIGHT = 20  # pixels
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


def object_palette() -> UInt8[np.ndarray, "256 3"]:
    """RGB colour of every id, as indexed PNGs of PASCAL VOC and DAVIS have it: bits of the id become bits of colour."""
    ids = np.arange(256)[:, None]
    channels = np.arange(3)
    return sum(((ids >> (3 * digit + channels)) & 1) << (7 - digit) for digit in range(3)).astype(np.uint8)


def overlay_ids(image: UInt8[np.ndarray, "h w 3"], object_ids: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """An image with objects tinted in their colours and outlined in white; the background as it is."""
    palette = object_palette()
    tinted = cv2.addWeighted(image, 1 - FILL, palette[object_ids], FILL, 0)
    picture = np.where(object_ids[..., None] > 0, tinted, image)
    borders = cv2.morphologyEx(object_ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    picture[borders & (object_ids > 0)] = 255
    return picture


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[str], columns: int = 4
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Images of one size in rows on white, each under its caption, made smaller to fit `SHEET_WIDTH`."""
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    scale = min(1.0, (SHEET_WIDTH / columns - GAP) / width)
    cell_width, cell_height = max(round(width * scale), 1), max(round(height * scale), 1)
    step_x, step_y = cell_width + GAP, cell_height + CAPTION_HEIGHT + GAP
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), 255, dtype=np.uint8)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = GAP + index % columns * step_x, GAP + index // columns * step_y
        _write_caption(sheet[y : y + CAPTION_HEIGHT, x : x + cell_width], caption)
        smaller = cv2.resize(image, (cell_width, cell_height), interpolation=cv2.INTER_AREA)
        sheet[y + CAPTION_HEIGHT : y + CAPTION_HEIGHT + cell_height, x : x + cell_width] = smaller
    return sheet


def _write_caption(strip: UInt8[np.ndarray, "caption_h w 3"], text: str) -> None:
    """Write into a strip of a sheet; OpenCV's font has ASCII only."""
    text = text.encode("ascii", "replace").decode()
    (width, _), _ = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    scale = FONT_SCALE * min(1.0, strip.shape[1] / max(width, 1))
    canvas = np.ascontiguousarray(strip)
    cv2.putText(canvas, text, (0, CAPTION_HEIGHT - 6), FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    strip[:] = canvas


def write_picture(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB picture as PNG, whole or not at all."""
    encoded_well, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert encoded_well, f"OpenCV could not encode a picture of shape {picture.shape}"
    write_bytes_atomic(path, encoded.tobytes())
