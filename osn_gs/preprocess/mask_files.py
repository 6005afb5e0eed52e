"""Masks as people have them: which file holds which object of which frame, and what its pixels say.

Read here are: one picture or array of ids a frame (indexed, grey or coloured), one picture or array for each object and
frame (OBJECT/FRAME.png, FRAME/OBJECT.png, FRAME_OBJECT.png or OBJECT_FRAME.png), stacks of objects, and single arrays
over all frames. That covers what DAVIS, SAM 2, Cutie, XMem and Track-Anything write.

A mask becomes labels: whole numbers for what the files tell apart, not yet object ids. Black and 0 are label 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from osn_gs.errors import DatasetError
from osn_gs.preprocess.image_folder import natural_key

ARRAY_SUFFIXES = (".npy", ".npz")
MASK_SUFFIXES = (".png", *ARRAY_SUFFIXES, ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
USUAL_FOLDERS = ("masks", "mask", "annotations")  # chosen where a tool's output holds other folders beside it
COLOUR = 1 << 24  # labels from here on are RGB colours; greys are labelled by their value
LARGEST_VALUE = (1 << 16) - 1
OPAQUE = 128  # alpha


@dataclass(frozen=True)
class MaskPiece:
    """The mask of one frame, or of one object in it: a file, or `array` out of it where it holds several.

    `object_index` is a place in `MaskFiles.objects`, None where the values are labels themselves.
    """

    path: Path
    object_index: int | None = None
    array: Shaped[np.ndarray, "..."] | None = None


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a clip, one entry of `pieces` a frame in natural order of names.

    `layout` says in words what was found. `frames` names each frame as the files do, () where they do not. `objects`
    names the objects that have pieces of their own; a frame may lack some. `indexed` is true for pictures with
    palettes, `palette_agrees` false where these number their colours differently from frame to frame.
    """

    layout: str
    frames: tuple[str, ...]
    objects: tuple[str, ...]
    pieces: tuple[tuple[MaskPiece, ...], ...]
    indexed: bool = False
    palette_agrees: bool = True

    def __len__(self) -> int:
        return len(self.pieces)

    def label_text(self, label: int) -> str:
        """How a user names a label: an object's name, #rrggbb for a colour, else the number in the files."""
        if self.objects and label > 0:
            return self.objects[label - 1]
        return f"#{label - COLOUR:06x}" if label >= COLOUR else str(label)


def find_masks(path: Path) -> MaskFiles:
    """The masks at `path`: a folder of pictures or arrays, or a .npy or .npz file with all frames.

    Raises:
        DatasetError: nothing there can be masks.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder; expected a folder of masks, or a .npy or .npz file.")
    if path.is_file():
        if path.suffix.lower() not in ARRAY_SUFFIXES:
            raise DatasetError(f"{path}: is one file; expected a folder with a mask for each frame, or a .npy of all.")
        return _masks_of_one_file(path)
    folder = _innermost_folder(path)
    files = _mask_files_in(folder)
    if not files:
        pieces = {
            (file.parent.name, file.stem): file for child in _folders_in(folder) for file in _mask_files_in(child)
        }
        if not pieces:
            raise DatasetError(f"{path}: no masks found; expected {', '.join(MASK_SUFFIXES)} files, {_held(path)}.")
        return _masks_of_pairs(pieces, "one folder per {} and one file per {}")
    if files[0].suffix.lower() == ".npz":
        return _masks_of_archives(files)
    pairs = _split_names([file.stem for file in files])
    if pairs is not None:
        return _masks_of_pairs(dict(zip(pairs, files, strict=True)), "files named {}_{}")
    return _masks_of_frames(files)


def _innermost_folder(folder: Path) -> Path:
    """Down through folders that hold no masks but one folder, or one of a usual name."""
    while not _mask_files_in(folder):
        children = _folders_in(folder)
        usual = [child for child in children if child.name.lower() in USUAL_FOLDERS]
        if len(children) != 1 and len(usual) != 1:
            break
        folder = (usual or children)[0]
    return folder


def _folders_in(folder: Path) -> list[Path]:
    children = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(children, key=lambda path: natural_key(path.name))


def _mask_files_in(folder: Path) -> list[Path]:
    """Files of the commonest suffix: tools write notes, previews or a second format beside their masks."""
    children = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = sorted(children, key=lambda path: natural_key(path.name))
    counts = Counter(file.suffix.lower() for file in files if file.suffix.lower() in MASK_SUFFIXES)
    if not counts:
        return []
    chosen = min(counts, key=lambda suffix: (-counts[suffix], MASK_SUFFIXES.index(suffix)))
    return [file for file in files if file.suffix.lower() == chosen]


def _held(folder: Path) -> str:
    kinds = Counter(path.suffix.lower() or path.name for path in folder.rglob("*") if path.is_file()).most_common(3)
    return "got " + (", ".join(f"{count} {kind}" for kind, count in kinds) if kinds else "an empty folder")


def _split_names(stems: Sequence[str]) -> list[tuple[str, str]] | None:
    """Both parts of FRAME_OBJECT or OBJECT_FRAME names; None where names number frames alone, as frame_00012 does."""
    matches = [re.fullmatch(r"(.+?)[-_. ]+([^-_. ]+)", stem) for stem in stems]
    if not all(matches):
        return None
    pairs = [match.groups() for match in matches]
    distinct = [len(set(part)) for part in zip(*pairs, strict=True)]
    return pairs if min(distinct) > 1 and len(pairs) > max(distinct) else None


def _masks_of_pairs(files: Mapping[tuple[str, str], Path], layout: str) -> MaskFiles:
    """One file for each object and frame. Frames are what there are more of."""
    first, second = (sorted(set(part), key=natural_key) for part in zip(*files, strict=True))
    folders = "folder" in layout
    frames_first = len(first) > len(second) or (len(first) == len(second) and not folders)
    frames, objects = (first, second) if frames_first else (second, first)
    pieces = tuple(
        tuple(
            MaskPiece(files[key], index)
            for index, name in enumerate(objects)
            if (key := (frame, name) if frames_first else (name, frame)) in files
        )
        for frame in frames
    )
    roles = ("frame", "object") if frames_first else ("object", "frame")
    if not folders:
        roles = tuple(role.upper() for role in roles)
    return MaskFiles(layout.format(*roles), tuple(frames), tuple(objects), pieces)


def _masks_of_frames(files: Sequence[Path]) -> MaskFiles:
    frames = tuple(file.stem for file in files)
    pieces = tuple((MaskPiece(file),) for file in files)
    if files[0].suffix.lower() == ".npy":
        return MaskFiles("one array a frame", frames, (), pieces)
    palettes = [_palette(file) for file in files]
    if not any(palettes):
        return MaskFiles("one picture of ids a frame", frames, (), pieces)
    # Programs that make PNGs smaller renumber each frame's palette by what it shows: only colours can be trusted then.
    agrees = all(a[: len(b)] == b[: len(a)] for a, b in pairwise(sorted(palettes, key=len)))
    layout = "one indexed picture a frame" + ("" if agrees else ", read by colour as palettes differ")
    return MaskFiles(layout, frames, (), pieces, indexed=agrees, palette_agrees=agrees)


def _palette(path: Path) -> tuple[int, ...]:
    with _open_picture(path) as image:
        return tuple(image.getpalette() or ()) if image.mode == "P" else ()


def _masks_of_archives(files: Sequence[Path]) -> MaskFiles:
    """A .npz per frame, with one array, or with one of each object under its name."""
    contents = [_load_arrays(file) for file in files]
    frames = tuple(file.stem for file in files)
    if all(len(content) == 1 for content in contents):
        pieces = tuple((MaskPiece(file),) for file in files)
        return MaskFiles("one array a frame", frames, (), pieces)
    objects = tuple(sorted({name for content in contents for name in content}, key=natural_key))
    pieces = tuple(
        tuple(MaskPiece(file, objects.index(name), array) for name, array in content.items())
        for file, content in zip(files, contents, strict=True)
    )
    return MaskFiles("one archive a frame with an array per object", frames, objects, pieces)


def _masks_of_one_file(path: Path) -> MaskFiles:
    """Arrays over all frames: [t, h, w] of labels, [t, k, h, w] with one layer per object, or named [t, h, w]."""
    arrays = _load_arrays(path)
    lengths = {array.shape[0] if array.ndim >= 3 else 0 for array in arrays.values()}
    if 0 in lengths or len(lengths) > 1:
        shapes = ", ".join(str(array.shape) for array in list(arrays.values())[:3])
        raise DatasetError(
            f"{path}: holds arrays of shape {shapes}; expected [frames, height, width] with object ids, or "
            "[frames, objects, height, width]."
        )
    if len(arrays) == 1:
        (array,) = arrays.values()
        pieces = tuple((MaskPiece(path, None, frame),) for frame in array)
        return MaskFiles("one array of all frames", (), (), pieces)
    objects = tuple(sorted(arrays, key=natural_key))
    pieces = tuple(
        tuple(MaskPiece(path, index, arrays[name][frame]) for index, name in enumerate(objects))
        for frame in range(lengths.pop())
    )
    return MaskFiles("one array of all frames per object", (), objects, pieces)


def _load_arrays(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a .npy or .npz by name; a .npy is left on disk until it is looked at."""
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError):
        raise DatasetError(
            f"{path}: cannot be read as NumPy arrays of numbers; save masks as plain arrays, not as Python objects."
        ) from None
    if not arrays:
        raise DatasetError(f"{path}: holds no array; expected masks.")
    return arrays


def read_labels(masks: MaskFiles, frame: int, threshold: float) -> Int[np.ndarray, "h w"]:
    """What each pixel of a frame's mask says (see `MaskFiles.label_text`), 0 where no object has it.

    Soft masks belong to the object where they exceed `threshold` (of 1); the strongest wins, then the first.

    Raises:
        DatasetError: a file cannot be read, has no values that can be labels, or does not fit the frame's others.
    """
    pieces = masks.pieces[frame]
    if not masks.objects:
        (piece,) = pieces
        return _labels(_read_piece(piece, masks.palette_agrees), piece.path, threshold)
    confidences = np.stack(
        _of_one_size(pieces, [_confidence(_read_piece(piece, True), piece.path) for piece in pieces])
    )
    owners = np.array([piece.object_index for piece in pieces])
    return np.where(confidences.max(axis=0) > threshold, owners[confidences.argmax(axis=0)] + 1, 0)


def _of_one_size(pieces: Sequence[MaskPiece], layers: list[np.ndarray]) -> list[np.ndarray]:
    for piece, layer in zip(pieces, layers, strict=True):
        if layer.shape != layers[0].shape:
            raise DatasetError(
                f"{piece.path}: mask is {_size(layer)} but {pieces[0].path} of the same frame is {_size(layers[0])}."
            )
    return layers


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"


def _read_piece(piece: MaskPiece, trust_palette: bool) -> Shaped[np.ndarray, "..."]:
    """Palette indices [h, w], values [h, w], colours [h, w, 3 or 4], or an array as it is."""
    if piece.array is not None:
        return np.asarray(piece.array)
    if piece.path.suffix.lower() in ARRAY_SUFFIXES:
        (array,) = _load_arrays(piece.path).values()
        return np.asarray(array)
    with _open_picture(piece.path) as image:
        try:
            if image.mode == "P" and not trust_palette:
                image = image.convert("RGB")
            elif image.mode not in ("P", "1", "L", "I", "I;16", "F", "RGB", "RGBA"):
                image = image.convert("RGBA" if image.mode in ("LA", "PA", "La", "RGBa") else "RGB")
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError):  # the last two are Pillow's on broken PNG chunks
            raise DatasetError(f"{piece.path}: the picture is damaged or cut short.") from None


def _open_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError:
        raise DatasetError(f"{path}: cannot be read as a picture.") from None


def _labels(array: Shaped[np.ndarray, "..."], path: Path, threshold: float) -> Int[np.ndarray, "h w"]:
    """Labels of one frame from ids, colours, a stack of objects, or one soft mask."""
    if _is_colour(array):
        return _colour_labels(array)
    array = _squeezed(array)
    if array.ndim == 3 and array.shape[0] < min(array.shape[1:]):
        confidences = np.stack([_confidence(layer, path) for layer in array])
        return np.where(confidences.max(axis=0) > threshold, confidences.argmax(axis=0) + 1, 0)
    if array.ndim != 2:
        raise DatasetError(f"{path}: has shape {array.shape}; expected [height, width] or [objects, height, width].")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        return (_confidence(array, path) > threshold).astype(np.int64)
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise DatasetError(f"{path}: holds {array.dtype} of shape {array.shape}; expected numbers.")
    if array.min() < 0 or array.max() > LARGEST_VALUE:
        raise DatasetError(
            f"{path}: values go from {array.min()} to {array.max()}; expected object ids 0 to {LARGEST_VALUE}."
        )
    return array.astype(np.int64)


def _squeezed(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Without the dimensions of length 1 before the last two: SAM 2 writes [1, h, w]."""
    leading = tuple(axis for axis in range(array.ndim - 2) if array.shape[axis] == 1)
    return np.squeeze(array, leading)


def _is_colour(array: Shaped[np.ndarray, "..."]) -> bool:
    return array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8 and array.shape[0] > 4


def _colour_labels(pixels: UInt8[np.ndarray, "h w c"]) -> Int[np.ndarray, "h w"]:
    """Greys by value, other colours from `COLOUR` on, 0 where transparent."""
    red, green, blue = np.moveaxis(pixels[..., :3].astype(np.int64), -1, 0)
    grey = (red == green) & (green == blue)
    labels = np.where(grey, red, COLOUR | red << 16 | green << 8 | blue)
    return np.where(pixels[..., 3] >= OPAQUE, labels, 0) if pixels.shape[-1] == 4 else labels


def _confidence(array: Shaped[np.ndarray, "..."], path: Path) -> Float[np.ndarray, "h w"]:
    """How sure one object's mask is of each pixel, 0 to 1.

    A picture of two values, one of them 0, is taken as no and yes. Numbers below 0 are logits, as SAM 2 has them; up to
    1, probabilities; other values are shares of 255, or of 65535 in 16 bits. Of a cut-out, transparency counts.
    """
    if _is_colour(array):
        has_alpha = array.shape[-1] == 4 and array[..., 3].min() < 255
        array = array[..., 3] if has_alpha else array[..., :3].max(axis=-1)
    array = _squeezed(array)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise DatasetError(f"{path}: {array.dtype} of shape {array.shape} is not one object's mask [height, width].")
    lowest, highest = array.min(), array.max()
    if lowest < 0:
        return (array > 0).astype(np.float32)
    if highest <= 1:
        return array.astype(np.float32)
    if ((array == 0) | (array == highest)).all() and lowest == 0:
        return (array > 0).astype(np.float32)
    return array.astype(np.float32) / (255 if highest <= 255 else LARGEST_VALUE)
