"""Object masks for a whole clip from prompts in a few frames, without learned weights.

In a frame with a prompt, a *key*, the object is cut out by GrabCut (Rother et al. 2004); `mask_propagation` carries it
from there through the other frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from osn_gs.errors import DatasetError
from osn_gs.preprocess.mask_propagation import propagate, without_specks
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.prompts import Box, ObjectPrompt, Point, Prompts

ITERATIONS = 5  # of GrabCut
SURE_RADIUS = 0.6  # of the ellipse in a box: inside, the object is taken for sure
POINT_RADIUS = 3  # pixels about a point that are surely on its side
POINT_REACH = 1 / 12  # of the image's longer side: the likely object about a point that stands alone
OUTLINE_BAND = (0.03, 2, 6)  # pixels on either side in which the border is looked for: of sqrt(area), least, most
LEAST_AGREEMENT = 0.7  # IoU with an outline below which a cut has run away from it

Trimap = UInt8[np.ndarray, "h w"]
"""What GrabCut is told: cv2.GC_BGD, GC_FGD (sure), GC_PR_BGD, GC_PR_FGD (to be found out)."""


def segment_clip(
    images: UInt8[np.ndarray, "t h w 3"], prompts: Prompts, progress: Progress = no_progress
) -> UInt8[np.ndarray, "t h w"]:
    """Object ids of all frames; where masks overlap, the smaller object is taken to be in front.

    Raises:
        DatasetError: an object has no prompt that says where it is.
    """
    check_prompts(prompts)
    keys = {
        (prompt.frame, prompt.object_id): mask_from_prompt(
            images[prompt.frame], prompt, points_on_others(prompts, prompt)
        )
        for prompt in prompts.prompts
        if not prompt.is_empty()
    }
    return propagate(images, keys, len(prompts.names), progress)


def check_prompts(prompts: Prompts) -> None:
    """Raise DatasetError unless every object is shown somewhere."""
    if not prompts.names:
        raise DatasetError("no object was named; add at least one object and say where it is in one frame.")
    for object_id, name in enumerate(prompts.names, 1):
        if all(prompts.get(frame, object_id).absent for frame in prompts.key_frames(object_id)):
            raise DatasetError(
                f"object {object_id} ({name!r}) has no box, outline or point inside it in any frame; show it in one, "
                "or remove it."
            )


def points_on_others(prompts: Prompts, prompt: ObjectPrompt) -> tuple[Point, ...]:
    """Points inside the other objects in a prompt's frame: they are outside of its own."""
    others = (p for p in prompts.prompts if p.frame == prompt.frame and p.object_id != prompt.object_id)
    return tuple(point for other in others for point in other.inside)


def mask_from_prompt(
    image: UInt8[np.ndarray, "h w 3"], prompt: ObjectPrompt, points_outside: tuple[Point, ...] = ()
) -> Bool[np.ndarray, "h w"]:
    """Cut the object of one prompt out of its frame. `points_outside` are taken as the prompt's own are.

    May be empty: nothing in the box looks other than what is around it.
    """
    height, width = image.shape[:2]
    if prompt.absent:
        return np.zeros((height, width), dtype=bool)
    outside = prompt.outside + points_outside
    drawn = None
    if prompt.outlines:
        drawn = fill_outlines(prompt, height, width)
        trimap = _trimap_of_exact(drawn) if prompt.exact else _trimap_of_outlines(drawn)
        _reopen_about_points(trimap, drawn, prompt.inside, outside)
    elif prompt.box:
        trimap = _trimap_of_box(prompt.box, height, width)
    else:
        trimap = _trimap_of_points(prompt.inside, height, width)
    for points, label in ((outside, cv2.GC_BGD), (prompt.inside, cv2.GC_FGD)):
        for x, y in points:
            cv2.circle(trimap, (int(x), int(y)), POINT_RADIUS, int(label), cv2.FILLED)
    mask = _cut(image, trimap)
    if drawn is not None and not (prompt.inside or outside) and _iou(mask, drawn) < LEAST_AGREEMENT:
        mask = drawn
    return without_specks(mask, prompt.inside)


def correction(
    prompt: ObjectPrompt,
    shown: Bool[np.ndarray, "h w"],
    inside: tuple[Point, ...] = (),
    outside: tuple[Point, ...] = (),
) -> ObjectPrompt:
    """`prompt` with more points; if it was empty, what is `shown` of the object stays but for them."""
    outlines, exact = prompt.outlines, prompt.exact
    if prompt.is_empty() and shown.any():
        found, _ = cv2.findContours(shown.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        simple = (cv2.approxPolyDP(contour, 0.7, True)[:, 0] + 0.5 for contour in found)
        outlines = tuple(tuple((float(x), float(y)) for x, y in outline) for outline in simple if len(outline) > 2)
        exact = len(outlines) > 0
    return ObjectPrompt(
        prompt.frame, prompt.object_id, prompt.box, outlines, exact, prompt.inside + inside, prompt.outside + outside
    )


def fill_outlines(prompt: ObjectPrompt, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The inside of a prompt's outlines; of exact ones, those within others are holes."""
    outlines = [np.round(np.array(outline) - 0.5).astype(np.int32) for outline in prompt.outlines]
    mask = np.zeros((height, width), np.uint8)
    for together in [outlines] if prompt.exact else [[outline] for outline in outlines]:
        cv2.fillPoly(mask, together, 1)
    return mask.astype(bool)


def _trimap_of_exact(drawn: Bool[np.ndarray, "h w"]) -> Trimap:
    return np.where(drawn, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8)


def _trimap_of_outlines(drawn: Bool[np.ndarray, "h w"]) -> Trimap:
    """The border is somewhere in a band about what was drawn."""
    share, least, most = OUTLINE_BAND
    band = int(np.clip(share * np.sqrt(np.count_nonzero(drawn)), least, most))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    trimap = np.full(drawn.shape, cv2.GC_BGD, np.uint8)
    trimap[cv2.dilate(drawn.astype(np.uint8), disc) > 0] = cv2.GC_PR_BGD
    trimap[drawn] = cv2.GC_PR_FGD
    trimap[cv2.erode(drawn.astype(np.uint8), disc) > 0] = cv2.GC_FGD
    return trimap


def _trimap_of_box(box: Box, height: int, width: int) -> Trimap:
    """The middle of the box is the object; the rest is to be found out, and its corners begin as background.

    Without a sure middle GrabCut gave the whole box up in a third to a half of the frames of some clips.
    """
    trimap = np.full((height, width), cv2.GC_BGD, np.uint8)
    x0, y0, x1, y1 = (max(round(value), 0) for value in box)
    part = trimap[y0:y1, x0:x1]
    part[:] = cv2.GC_PR_BGD
    rows, columns = np.ogrid[-1 : 1 : part.shape[0] * 1j, -1 : 1 : part.shape[1] * 1j]
    part[rows**2 + columns**2 <= 1] = cv2.GC_PR_FGD
    part[rows**2 + columns**2 <= SURE_RADIUS**2] = cv2.GC_FGD
    return trimap


def _trimap_of_points(inside: Sequence[Point], height: int, width: int) -> Trimap:
    """Anything may be the object; what is near the points is likely to be."""
    trimap = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    trimap[[0, -1]] = trimap[:, [0, -1]] = cv2.GC_BGD
    for x, y in inside:
        cv2.circle(trimap, (int(x), int(y)), int(POINT_REACH * max(height, width)), cv2.GC_PR_FGD, cv2.FILLED)
    return trimap


def _reopen_about_points(
    trimap: Trimap, drawn: Bool[np.ndarray, "h w"], inside: Sequence[Point], outside: Sequence[Point]
) -> None:
    """Where points contradict what was drawn, leave open what lies between them and its border (in place)."""
    to_drawn = cv2.distanceTransform((~drawn).astype(np.uint8), cv2.DIST_L2, 3)
    to_rest = cv2.distanceTransform(drawn.astype(np.uint8), cv2.DIST_L2, 3)
    for points, distance, label in ((inside, to_drawn, cv2.GC_PR_FGD), (outside, to_rest, cv2.GC_PR_BGD)):
        for x, y in points:
            away = float(distance[int(y), int(x)])
            if away > 0:
                disc = np.zeros(drawn.shape, np.uint8)
                cv2.circle(disc, (int(x), int(y)), int(1.5 * away) + 10, 1, cv2.FILLED)
                trimap[disc > 0] = label


def _cut(image: UInt8[np.ndarray, "h w 3"], trimap: Trimap) -> Bool[np.ndarray, "h w"]:
    """GrabCut in the part of the image that matters; what is far away would only blur the background's colours."""
    rows, columns = np.nonzero(trimap != cv2.GC_BGD)
    if len(rows) == 0:
        return np.zeros(trimap.shape, dtype=bool)
    margin = 12 + int(0.25 * np.sqrt(len(rows)))
    window = (
        slice(max(rows.min() - margin, 0), rows.max() + margin + 1),
        slice(max(columns.min() - margin, 0), columns.max() + margin + 1),
    )
    part = np.ascontiguousarray(trimap[window])
    is_object = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    if is_object.any() and not is_object.all():  # else there is nothing to tell apart, and OpenCV would raise
        cv2.setRNGSeed(0)  # it clusters colours from random starts
        image_part = np.ascontiguousarray(image[window])
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image_part, part, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    mask = np.zeros(trimap.shape, dtype=bool)
    mask[window] = (part == cv2.GC_FGD) | (part == cv2.GC_PR_FGD)
    return mask


def _iou(first: Bool[np.ndarray, "h w"], second: Bool[np.ndarray, "h w"]) -> float:
    return np.count_nonzero(first & second) / max(np.count_nonzero(first | second), 1)
