"""Masks from a few prompts: carried, corrected, lost and found again; and what wrong prompts are told."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import viser
from moving_patches import HEIGHT, WIDTH, PatchClip, iou, moving_patches
from PIL import Image

from osn_gs.errors import DatasetError
from osn_gs.preprocess.indexed_png import write_indexed_png
from osn_gs.preprocess.mask_files import find_masks, read_labels
from osn_gs.preprocess.mask_propagation import guided_filter
from osn_gs.preprocess.prompts import ObjectPrompt, Prompts, read_prompts, write_prompts
from osn_gs.preprocess.sam2_segmentation import Sam2Config, segment_with_sam2
from osn_gs.preprocess.segmentation import correction, mask_from_prompt, segment_clip
from osn_gs.run.command import EXIT_BAD_INPUT, run_tool
from osn_gs.run.segment import segment_from_arguments

NAMES = tuple(f"{number:04d}" for number in range(6))
OBJECTS = ("disc", "square")


@pytest.fixture(scope="module")
def crossing() -> PatchClip:
    """The square runs across the disc; both jump by many pixels a frame."""
    return moving_patches([(60 + 6 * t, 60) for t in range(6)], [(22 + 22 * t, 70) for t in range(6)])


def box_about(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask)
    return columns.min() - 1.0, rows.min() - 1.0, columns.max() + 2.0, rows.max() + 2.0


def boxes(clip: PatchClip, frame: int = 0) -> Prompts:
    """One box an object, in one frame."""
    prompts = Prompts(OBJECTS)
    for object_id in (1, 2):
        box = box_about(clip.object_ids[frame] == object_id)
        prompts = prompts.put(ObjectPrompt(frame, object_id, box=box))
    return prompts


def write_images(folder: Path, clip: PatchClip) -> Path:
    folder.mkdir()
    for name, image in zip(NAMES, clip.images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_boxes_in_one_frame_become_masks_of_all(crossing: PatchClip):
    object_ids = segment_clip(crossing.images, boxes(crossing))
    for object_id in (1, 2):
        scores = [iou(f == object_id, t == object_id) for f, t in zip(object_ids, crossing.object_ids, strict=True)]
        assert min(scores) > 0.85, (object_id, scores)


def test_the_same_prompts_give_the_same_masks_whatever_opencv_does_with_threads(crossing: PatchClip):
    first = segment_clip(crossing.images, boxes(crossing))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1 if threads > 1 else 2)
    try:
        np.random.default_rng().normal(size=3)
        cv2.setRNGSeed(77)
        np.testing.assert_array_equal(segment_clip(crossing.images, boxes(crossing)), first)
    finally:
        cv2.setNumThreads(threads)


def test_prompts_in_a_late_frame_reach_the_first_one(crossing: PatchClip):
    object_ids = segment_clip(crossing.images, boxes(crossing, frame=5))
    assert iou(object_ids[0] == 2, crossing.object_ids[0] == 2) > 0.85


def test_an_object_hidden_by_another_is_found_again():
    """The disc vanishes behind the square for a frame and comes out far from where it went in."""
    clip = moving_patches(
        [(40, 60), (60, 60), (400, 60), (100, 60), (110, 60)], [(120, 60), (90, 62), (70, 60), (50, 60), (30, 60)]
    )
    object_ids = segment_clip(clip.images, boxes(clip))
    assert not (object_ids[2] == 1).any()
    assert iou(object_ids[4] == 1, clip.object_ids[4] == 1) > 0.8


def test_an_object_said_to_be_absent_stays_away_until_it_is_shown_again(crossing: PatchClip):
    prompts = boxes(crossing).put(ObjectPrompt(2, 2, absent=True))
    object_ids = segment_clip(crossing.images, prompts)
    assert (object_ids[0] == 2).any()
    assert not (object_ids[2:] == 2).any()


def test_a_correction_mends_the_frames_on_both_sides_of_it(crossing: PatchClip):
    """The first box takes in a piece of wall; one exact outline three frames later outvotes it nearby."""
    x0, y0, x1, y1 = box_about(crossing.object_ids[0] == 1)
    wide = ObjectPrompt(0, 1, outlines=(((x0 - 25, y0), (x1, y0), (x1, y1), (x0 - 25, y1)),), exact=True)
    prompts = boxes(crossing).put(wide)
    wrong = segment_clip(crossing.images, prompts)
    key = correction(ObjectPrompt(3, 1), crossing.object_ids[3] == 1)
    right = segment_clip(crossing.images, prompts.put(key))
    for frame in (2, 4):
        true = crossing.object_ids[frame] == 1
        assert iou(right[frame] == 1, true) > iou(wrong[frame] == 1, true) + 0.03


def test_a_correction_keeps_what_is_shown_but_for_its_point(crossing: PatchClip):
    """A mask with a hole and a tail: a point on the tail cuts the tail off and leaves the rest, hole and all."""
    image = crossing.images[0]
    shown = crossing.object_ids[0] == 1
    shown[55:62, 55:62] = False
    with_tail = shown.copy()
    with_tail[57:63, 81:110] = True
    assert iou(mask_from_prompt(image, correction(ObjectPrompt(0, 1), with_tail)), with_tail) > 0.97
    corrected = mask_from_prompt(image, correction(ObjectPrompt(0, 1), with_tail, outside=((100.5, 60.5),)))
    assert iou(corrected[:, :80], shown[:, :80]) > 0.97
    assert np.count_nonzero(corrected[:, 88:]) < 20


def test_points_on_another_object_are_outside_of_this_one(crossing: PatchClip):
    """A box around both patches finds both; a point on the square, said of the square, frees the disc of it."""
    ids = crossing.object_ids[0]
    around_both = ObjectPrompt(0, 1, box=box_about(ids > 0))
    image = crossing.images[0]
    assert iou(mask_from_prompt(image, around_both), ids > 0) > 0.8
    square = (22.5, 70.5)
    prompts = Prompts(OBJECTS, (around_both, ObjectPrompt(0, 2, box=box_about(ids == 2), inside=(square,))))
    assert segment_clip(crossing.images[:3], prompts)[0, 70, 22] == 2
    assert not mask_from_prompt(image, around_both, (square,))[70, 22]


def test_a_point_alone_finds_the_patch_it_lies_on(crossing: PatchClip):
    mask = mask_from_prompt(crossing.images[0], ObjectPrompt(0, 1, inside=((60.5, 60.5),)))
    assert iou(mask, crossing.object_ids[0] == 1) > 0.8


def test_masks_of_frames_larger_than_what_is_worked_on_follow_their_edges():
    clip = moving_patches([(60 + 6 * t, 60) for t in range(3)], [(400, 0)] * 3)
    large = np.stack([cv2.resize(image, None, fx=8, fy=8, interpolation=cv2.INTER_LINEAR) for image in clip.images])
    true = np.kron(clip.object_ids, np.ones((1, 8, 8), np.uint8))
    prompts = Prompts(("disc",), (correction(ObjectPrompt(0, 1), true[0] == 1),))
    assert iou(segment_clip(large, prompts)[2] == 1, true[2] == 1) > 0.85


@pytest.mark.parametrize(("height", "width"), [(117, 155), (55, 63)])
def test_any_size_will_do(height: int, width: int, crossing: PatchClip):
    """Sides that four does not divide, and a clip so small that one object is a third of it."""
    window = np.s_[3:, 60 - height // 2 : 60 + (height + 1) // 2, 80 - width // 2 : 80 + (width + 1) // 2]
    images, true = (np.ascontiguousarray(stack[window]) for stack in (crossing.images, crossing.object_ids))
    keys = tuple(correction(ObjectPrompt(0, k), true[0] == k) for k in (1, 2))
    object_ids = segment_clip(images, Prompts(OBJECTS, keys))
    assert iou(object_ids[2] > 0, true[2] > 0) > 0.7


def test_the_guided_filter_keeps_an_edge_of_the_guide_and_smooths_elsewhere():
    guide = np.zeros((40, 40), np.float32)
    guide[:, 20:] = 1
    noise = np.random.default_rng(0).normal(0, 0.1, guide.shape).astype(np.float32)
    smooth = guided_filter(guide, guide + noise)
    assert smooth[:, 18].max() < 0.2
    assert smooth[:, 21].min() > 0.8
    assert smooth[8:-8, 5:12].std() < 0.03


def test_prompts_are_read_as_they_were_written(tmp_path: Path):
    prompts = Prompts(
        OBJECTS,
        (
            ObjectPrompt(0, 1, box=(1.0, 2.0, 30.0, 40.0), inside=((5.5, 6.5),), outside=((50.0, 60.0),)),
            ObjectPrompt(4, 1, outlines=(((1.0, 1.0), (9.0, 1.0), (5.0, 8.0)),), exact=True),
            ObjectPrompt(3, 2, absent=True),
        ),
    )
    write_prompts(tmp_path / "prompts.json", prompts, NAMES, (WIDTH, HEIGHT))
    assert read_prompts(tmp_path / "prompts.json", NAMES, (WIDTH, HEIGHT)) == prompts


def test_frames_are_found_by_name_when_others_are_taken(tmp_path: Path):
    write_prompts(tmp_path / "prompts.json", Prompts(("disc",), (ObjectPrompt(4, 1, absent=True),)), NAMES, (8, 8))
    every_second = read_prompts(tmp_path / "prompts.json", NAMES[::2], (8, 8))
    assert every_second.prompts[0].frame == 2


GOOD_ENTRY = {"frame": "0000", "object": "disc", "box": [1, 1, 9, 9]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": [10, 10]}, r"frames of size \[10, 10\] but these are \[160, 120\]"),
        ({"objects": []}, "expected"),
        ({"objects": ["disc", "disc"]}, "different names"),
        ({"prompts": [{**GOOD_ENTRY, "object": "dics"}]}, "prompt 0 is about object 'dics'; known objects: disc"),
        ({"prompts": [{**GOOD_ENTRY, "frame": "0009"}]}, "'0009', which is not among the 6 frames 0000 to 0005"),
        ({"prompts": [{**GOOD_ENTRY, "bx": 1}]}, r"unknown keys \['bx'\]"),
        ({"prompts": [{**GOOD_ENTRY, "box": [9, 1, 1, 9]}]}, "x0 < x1"),
        ({"prompts": [{**GOOD_ENTRY, "outlines": [[[1, 1], [2, 2]]]}]}, "at least three"),
        ({"prompts": [{**GOOD_ENTRY, "inside": [[500, 3]]}]}, r"point \(500, 3\) is outside the image of 160x120"),
        ({"prompts": [{**GOOD_ENTRY, "absent": True}]}, "leave one out"),
        ({"prompts": [{"frame": "0000", "object": "disc"}]}, "says nothing"),
        ({"prompts": [GOOD_ENTRY, GOOD_ENTRY]}, "second one for 'disc' in frame '0000'"),
        ({"prompts": ["disc"]}, "prompt 0 is 'disc'"),
    ],
)
def test_wrong_prompts_are_told_what_is_wrong(change: dict, told: str, tmp_path: Path):
    content = {"size": [WIDTH, HEIGHT], "objects": ["disc"], "prompts": [GOOD_ENTRY], **change}
    (tmp_path / "prompts.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=told):
        read_prompts(tmp_path / "prompts.json", NAMES, (WIDTH, HEIGHT))


def test_an_object_that_is_shown_nowhere_is_named(crossing: PatchClip):
    prompts = replace(boxes(crossing), names=(*OBJECTS, "ghost"))
    with pytest.raises(DatasetError, match=r"object 3 \('ghost'\)"):
        segment_clip(crossing.images, prompts)


def test_indexed_masks_hold_ids_and_colours(tmp_path: Path):
    write_indexed_png(tmp_path / "a.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), np.arange(256).reshape(16, 16))
    assert np.asarray(image.convert("RGB"))[0, 1].tolist() == [128, 0, 0], "object 1 is DAVIS's dark red"


def test_the_tool_makes_masks_that_preparation_reads(
    crossing: PatchClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = write_images(tmp_path / "images", crossing)
    write_prompts(tmp_path / "prompts.json", boxes(crossing), NAMES, (WIDTH, HEIGHT))
    out = tmp_path / "masks"
    arguments = ["--images", images, "--prompts", tmp_path / "prompts.json", "--out", out]
    assert run_tool(segment_from_arguments, [str(argument) for argument in arguments]) == 0
    assert f"--masks {out}" in capsys.readouterr().out.replace("\n", "")
    masks = find_masks(out)
    assert masks.frames == NAMES
    np.testing.assert_array_equal(read_labels(masks, 5, 0.5), segment_clip(crossing.images, boxes(crossing))[5])
    assert json.loads((out / "prompts.json").read_text())["objects"] == list(OBJECTS)


def test_the_tool_serves_its_page_until_it_is_interrupted(
    crossing: PatchClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(server: viser.ViserServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(viser.ViserServer, "sleep_forever", interrupt)
    images = write_images(tmp_path / "images", crossing)
    arguments = ["--images", str(images), "--out", str(tmp_path / "masks"), "--port", "8790"]
    assert run_tool(segment_from_arguments, arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Open http://127.0.0.1:\d+ in a browser", printed)
    assert "Go on with" not in printed, "there are no masks to go on with"


def test_the_tool_does_not_overwrite_masks_it_did_not_make(
    crossing: PatchClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = write_images(tmp_path / "images", crossing)
    assert run_tool(segment_from_arguments, ["--images", str(images), "--out", str(images)]) == EXIT_BAD_INPUT
    assert "no prompts.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images", "clip"], "--out FOLDER"),
        (["--out", "masks"], "no clip is given"),
        (["--images", "clip", "--out", "masks", "--sam2.checkpoint", "weights.pt"], "sam2 is not installed"),
    ],
)
def test_a_command_that_cannot_work_gets_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    if "sam2.checkpoint" in arguments[-2] and "sam2" in sys.modules:
        pytest.skip("sam2 is installed here")
    assert run_tool(segment_from_arguments, arguments) == EXIT_BAD_INPUT
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1


class FakeSam2Predictor:
    """Answers like SAM 2's video predictor: every object is a column of pixels as wide as its id."""

    def __init__(self):
        self.told = []

    def init_state(self, folder: str):
        self.num_frames = len(list(Path(folder).glob("*.jpg")))
        self.size = Image.open(Path(folder) / "00000.jpg").size[::-1]
        return "state"

    def add_new_mask(self, inference_state, frame_idx, obj_id, mask):
        self.told.append((frame_idx, obj_id, "mask", int(mask.sum())))

    def add_new_points_or_box(self, inference_state, frame_idx, obj_id, points, labels, box):
        points, labels, box = (None if value is None else np.asarray(value).tolist() for value in (points, labels, box))
        self.told.append((frame_idx, obj_id, points, labels, box))

    def propagate_in_video(self, state, start_frame_idx, reverse):
        for frame in range(start_frame_idx, -1, -1) if reverse else range(start_frame_idx, self.num_frames):
            logits = -torch.ones(2, 1, *self.size)
            logits[0, 0, :, :1], logits[1, 0, :, 10:12] = 1, 1
            yield frame, [1, 2], logits


def test_sam2_is_given_the_prompts_and_its_masks_become_ids(
    crossing: PatchClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Against a stand-in: what SAM 2 itself makes of them is not tested here."""
    predictor = FakeSam2Predictor()
    build = types.ModuleType("sam2.build_sam")
    build.build_sam2_video_predictor = lambda model, checkpoint, device: predictor
    monkeypatch.setitem(sys.modules, "sam2", types.ModuleType("sam2"))
    monkeypatch.setitem(sys.modules, "sam2.build_sam", build)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "found")
    (tmp_path / "weights.pt").touch()
    prompts = Prompts(
        OBJECTS,
        (
            ObjectPrompt(2, 1, box=(1.0, 2.0, 3.0, 4.0), inside=((2.5, 3.5),)),
            ObjectPrompt(2, 2, outlines=(((10.5, 10.5), (19.5, 10.5), (19.5, 19.5), (10.5, 19.5)),)),
            ObjectPrompt(4, 2, absent=True),
        ),
    )
    config = Sam2Config(checkpoint=tmp_path / "weights.pt", device="cpu")
    object_ids = segment_with_sam2(crossing.images, prompts, config)
    assert predictor.told == [
        (2, 1, [[2.5, 3.5]], [1], [1.0, 2.0, 3.0, 4.0]),
        (2, 2, "mask", 100),
        (2, 2, [[2.5, 3.5]], [0], None),
        (4, 2, "mask", 0),
    ]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :1], expected[:, 10:12] = 1, 2
    for frame in range(6):
        np.testing.assert_array_equal(object_ids[frame], expected)
