"""One picture of many: frames side by side with a line of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from osn_gs.files import write_bytes_atomic

GAP = 6  # pixels between pictures
CAPTION_HEIGHT = 20  # pixels
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
INK, PAPER = (40, 40, 40), 255


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[str], columns: int = 4, width: int = 1200
) -> UInt8[np.ndarray, "hs ws 3"]:
    """Images of one size in rows of `columns`, in a sheet of about `width` pixels; captions in ASCII."""
    assert len(images) == len(captions) > 0
    columns = min(columns, len(images))
    cell_width = (width - GAP) // columns - GAP
    cell_height = max(1, round(images[0].shape[0] * cell_width / images[0].shape[1]))
    step_x, step_y = cell_width + GAP, cell_height + CAPTION_HEIGHT + GAP
    rows = -(-len(images) // columns)
    sheet = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), PAPER, dtype=np.uint8)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = GAP + number % columns * step_x, GAP + number // columns * step_y
        shrinks = image.shape[1] > cell_width
        small = cv2.resize(
            image, (cell_width, cell_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        sheet[y : y + cell_height, x : x + cell_width] = small
        baseline = (x, y + cell_height + CAPTION_HEIGHT - 6)
        cv2.putText(sheet, caption, baseline, FONT, FONT_SCALE, INK, 1, cv2.LINE_AA)
    return sheet


def write_picture(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB image as PNG, whole or not at all."""
    encoded_well, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert encoded_well, f"OpenCV could not encode an image of shape {image.shape}"
    write_bytes_atomic(path, encoded.tobytes())
