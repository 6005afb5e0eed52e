"""A folder of images as a clip: order of the names, and pictures of every usual kind as 8-bit RGB."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from osn_gs.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FILM_DIAGONAL = math.hypot(36.0, 24.0)  # mm; 35 mm equivalents compare diagonals (CIPA DCG-001)
SHORTEST_FOCAL_35MM = 10.0  # mm; 130 degrees across the diagonal
EXIF_BLOCK, EXIF_FOCAL_35MM = 0x8769, 0xA405


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, 2.png before 10.png.

    Raises:
        DatasetError: there is no such folder or no image in it.
    """
    if not folder.exists():
        raise DatasetError(f"{folder}: no such folder; expected a folder of images.")
    if not folder.is_dir():
        raise DatasetError(f"{folder}: is a file; expected a folder of images (for a video use `--video`).")
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in files).most_common(3)
        held = ", ".join(f"{count} {kind}" for kind, count in kinds) if kinds else "no files at all"
        raise DatasetError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)}) but {held}; convert or choose it.")
    return sorted(images, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers inside names by value, the rest as text without case, and equals among these by the name itself."""
    pieces = re.findall(r"\d+|\D+", name)
    keys = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece.lower()) for piece in pieces]
    return (*keys, (2, 0, name))


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image as 8-bit RGB, upright by its EXIF orientation; transparent parts are laid over black.

    16-bit values are divided by 257.

    Raises:
        DatasetError: the file cannot be decoded whole.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        return _read_with_opencv(path)  # TIFFs of 16 bits a channel, which Pillow does not know
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as an image ({error}); save it again or leave it out.") from None


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_rgb(np.asarray(image))
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise ValueError("grey values are not 16-bit whole numbers")
    return np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, axis=2)


def _read_with_opencv(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if len(data) else None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise DatasetError(f"{path}: cannot be read as an image; save it again or leave it out.")
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., ::-1])


def focal_from_exif(path: Path) -> float | None:
    """Focal length in pixels of the image, from its 35 mm equivalent; None where the file does not say.

    Good to a few per cent where the image is not cropped: lenses are rounded, and phones correct distortion.
    """
    try:
        with Image.open(path) as image:
            film_focal = image.getexif().get_ifd(EXIF_BLOCK).get(EXIF_FOCAL_35MM)
            diagonal = math.hypot(*image.size)
    except (OSError, SyntaxError, ValueError):
        return None  # whoever reads the pixels says what is wrong
    if not film_focal or film_focal < SHORTEST_FOCAL_35MM:
        return None  # absent, 0 for "unknown", or of a panorama
    return float(film_focal) / FILM_DIAGONAL * diagonal
