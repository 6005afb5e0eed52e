"""From what masks say to object ids: 0 the background, objects 1, 2, ... without gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.mask_files import COLOUR, MaskFiles, read_labels
from osn_gs.preprocess.mask_matching import FrameMatch

MAX_IDS = 256
VOID = 255  # what PASCAL VOC and its followers paint where they do not say what is seen, in indexed pictures
PLAIN_LABELS = 32  # with more, labels that never cover an area are soft edges or traces of lossy compression
INTERIOR_SHARE = 0.25  # of a label's pixels that have only their like around them, from which on it is an object's
EDGE_WIDTH = 4.0  # pixels over which a soft edge goes from one object to the next
SOFT_SHARE = 0.5  # of all pixels that may lie on soft edges
MAX_COLOURS = 20_000  # in one clip: photographs have more


@dataclass(frozen=True)
class ObjectNumbering:
    """What the labels of the files become: ids without gaps, 0 the background.

    `labels[k]` is the label of object k. `merged` count as background; `soft` lie only on edges and go to the object
    next to them that is most like them.
    """

    labels: tuple[int, ...]
    merged: tuple[int, ...]
    soft: tuple[int, ...]

    def ids(self, labels: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Object ids of a frame's labels."""
        ids = np.zeros(labels.shape, dtype=np.uint8)
        for k, label in enumerate(self.labels[1:], start=1):
            ids[labels == label] = k
        if self.soft:
            solid = np.array([*self.labels, *self.merged])
            owners = np.array([*range(len(self.labels)), *(0 for _ in self.merged)], dtype=np.uint8)
            is_soft = np.isin(labels, self.soft)
            ids[is_soft] = owners[_most_alike_beside(labels, is_soft, solid)]
        return ids


def _most_alike_beside(
    labels: Int[np.ndarray, "h w"], is_soft: Bool[np.ndarray, "h w"], solid: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "m"]:
    """For every soft pixel the place in `solid` of the label most like it, among those about as near as the nearest."""
    rows, columns = np.nonzero(is_soft)
    distances = [
        cv2.distanceTransform((labels != label).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[rows, columns]
        if (labels == label).any()
        else np.full(len(rows), np.inf)
        for label in solid
    ]
    beside = distances <= np.min(distances, axis=0) + EDGE_WIDTH
    unlike = np.abs(_colours(solid)[:, None] - _colours(labels[rows, columns])[None]).sum(axis=-1)
    return np.where(beside, unlike, np.inf).argmin(axis=0)


def _colours(labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n 3"]:
    channels = np.stack([labels >> 16 & 255, labels >> 8 & 255, labels & 255], axis=-1)
    return np.where(labels[:, None] >= COLOUR, channels, labels[:, None])


@dataclass(frozen=True)
class LabelCounts:
    """How many pixels of the clip have each label, and how many of these only their like around them.

    The latter are counted only where edges can be soft: in masks of ids without palettes.
    """

    pixels: Counter[int]
    interior: Counter[int]


def count_labels(masks: MaskFiles, match: FrameMatch, threshold: float, told: Callable[[int], None]) -> LabelCounts:
    """Count the labels of all masks that belong to a frame; `told` gets their number after each.

    Raises:
        DatasetError: a mask cannot be read or has as many colours as a photograph.
    """
    pixels, interior = Counter(), Counter()
    for number, mask in enumerate(match.masks, start=1):
        if mask >= 0:
            labels = read_labels(masks, int(mask), threshold)
            pixels.update(_counts(labels))
            if len(pixels) > MAX_COLOURS:
                raise DatasetError(_not_masks(masks, int(mask), len(pixels)))
            if not (masks.indexed or masks.objects):
                interior.update(_counts(labels[_has_only_its_like_around(labels)]))
        told(number)
    return LabelCounts(pixels, interior)


def _counts(labels: Int[np.ndarray, "..."]) -> dict[int, int]:
    if labels.max(initial=0) < COLOUR:  # much the faster way
        counts = np.bincount(labels.ravel())
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(labels, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _has_only_its_like_around(labels: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """True where all nine pixels have one label. Double precision holds labels exactly."""
    values, square = labels.astype(np.float64), np.ones((3, 3), np.uint8)
    return cv2.erode(values, square) == cv2.dilate(values, square)


def _not_masks(masks: MaskFiles, mask: int, num_labels: int) -> str:
    return (
        f"{masks.pieces[mask][0].path}: {num_labels} different values or colours up to here, as in photographs; "
        "expected masks with one value or colour per object, without the image under it."
    )


def number_objects(
    counts: LabelCounts, masks: MaskFiles, background: str | None = None, ignore: Sequence[str] = ()
) -> ObjectNumbering:
    """Give the labels ids: the background 0, the others 1, 2, ... by value.

    Args:
        counts: of the labels that occur.
        masks: where they come from.
        background: what the files call the background; by default 0 or black, else what covers most.
        ignore: what counts as background besides.

    Raises:
        DatasetError: the labels are too many, or more like a picture than like masks.
        ConfigError: `background` or `ignore` name none of them.
    """
    labels, soft = _separate_soft(counts, masks)
    by_text = {masks.label_text(label): label for label in labels}
    merged = [_named_label(text, by_text, "ignore") for text in ignore]
    if background is not None:
        first = _named_label(background, by_text, "background")
    elif 0 in labels:
        first = 0
    else:
        first = max(labels, key=lambda label: counts.pixels[label])
    if masks.indexed and VOID in labels and set(labels) - {first, VOID}:
        merged.append(VOID)
    kept = sorted(set(labels) - {first, *merged})
    if len(kept) >= MAX_IDS:
        texts = ", ".join(masks.label_text(label) for label in kept[:8])
        raise DatasetError(
            f"masks have {len(kept)} different values or colours ({texts}, ...); expected at most {MAX_IDS - 1} "
            "objects. Lossy pictures (.jpg) blur them: save masks as PNG."
        )
    return ObjectNumbering((first, *kept), tuple(sorted(set(merged) - {first})), tuple(sorted(soft)))


def _separate_soft(counts: LabelCounts, masks: MaskFiles) -> tuple[list[int], list[int]]:
    """Labels of objects, and labels that occur only along edges."""
    if masks.objects:  # all of them: one that is never seen is to be told, not to be forgotten
        return list(range(len(masks.objects) + 1)), []
    if len(counts.pixels) <= PLAIN_LABELS or masks.indexed:
        return sorted(counts.pixels), []
    labels = [label for label in counts.pixels if counts.interior[label] >= INTERIOR_SHARE * counts.pixels[label]]
    soft = [label for label in counts.pixels if label not in set(labels)]
    if not labels or sum(counts.pixels[label] for label in soft) > SOFT_SHARE * counts.pixels.total():
        raise DatasetError(_not_masks(masks, 0, len(counts.pixels)))
    return sorted(labels), soft


def _named_label(text: str, by_text: dict[str, int], option: str) -> int:
    if text not in by_text:
        known = ", ".join(list(by_text)[:12])
        raise ConfigError(f"--{option} names {text!r}, which no mask has; masks have {known}.")
    return by_text[text]


def fill_from_nearest(ids: UInt8[np.ndarray, "h w"], unknown: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Every unknown pixel takes the id of the nearest known one; where none is known, ids stay."""
    if unknown.all():
        return ids
    _, nearest = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    id_of = np.zeros(nearest.max() + 1, dtype=np.uint8)
    id_of[nearest[~unknown]] = ids[~unknown]
    return id_of[nearest]


def fill_small_parts(ids: UInt8[np.ndarray, "h w"], smallest: int) -> UInt8[np.ndarray, "h w"]:
    """Connected parts of fewer than `smallest` pixels, of any id, take the ids around them."""
    small = np.zeros(ids.shape, dtype=bool)
    for k in np.unique(ids):
        _, parts, stats, _ = cv2.connectedComponentsWithStats((ids == k).astype(np.uint8))
        is_small = stats[:, cv2.CC_STAT_AREA] < smallest
        is_small[0] = False  # what is not k
        small |= is_small[parts]
    return fill_from_nearest(ids, small) if small.any() else ids


def advise_on_numbering(
    numbering: ObjectNumbering, masks: MaskFiles, names: Sequence[str], counts: LabelCounts
) -> list[str]:
    """How labels became ids, where that is not plain."""
    texts = [masks.label_text(label) for label in numbering.labels]
    advice = []
    if numbering.labels[0] != 0:
        advice.append(f"{texts[0]} is taken as the background; choose another with --background.")
    if texts != [str(k) for k in range(len(texts))] and tuple(texts[1:]) != tuple(names[1:]):
        pairs = ", ".join(f"{text} is object {k}" for k, text in enumerate(texts[1:13], start=1))
        advice.append(f"{pairs}{', ...' if len(texts) > 13 else ''}.")
    if numbering.merged:
        merged = ", ".join(masks.label_text(label) for label in numbering.merged)
        advice.append(f"{merged} counted as background; what moves there disturbs the camera's path.")
    if numbering.soft:
        share = sum(counts.pixels[label] for label in numbering.soft) / counts.pixels.total()
        advice.append(
            f"{len(numbering.soft)} values or colours occur on edges only ({100 * share:.1f} % of pixels) and "
            "were given to the object beside them; if one is a thin object, save masks without soft edges."
        )
    return advice
