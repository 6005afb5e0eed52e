"""The segmentation benchmark: its simulated user draws what a user would, and its scores are those of the masks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from moving_patches import PatchClip, iou, moving_patches
from PIL import Image
from rich.console import Console

from osn_gs.benchmarks import segmentation
from osn_gs.benchmarks.segmentation import (
    LabelledClip,
    SegmentationBenchmark,
    benchmark_segmentation,
    box_about,
    choose_key_frames,
    outlines_of,
    read_labelled_clip,
    score_masks,
    simulate_user,
)
from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.indexed_png import write_masks
from osn_gs.preprocess.prompts import ObjectPrompt, Prompts
from osn_gs.preprocess.segmentation import fill_outlines, mask_from_prompt

NUM_FRAMES = 4
GONE = (1000, 1000)


@pytest.fixture(scope="module")
def clip() -> PatchClip:
    """The square comes into view in the second frame."""
    return moving_patches([(60 + 4 * t, 50) for t in range(NUM_FRAMES)], [GONE, (130, 80), (126, 80), (122, 80)])


@pytest.fixture
def data(clip, tmp_path) -> Path:
    """The clip as a folder of images and masks."""
    (tmp_path / "images").mkdir()
    for number, image in enumerate(clip.images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:05d}.png")
    write_masks(tmp_path / "masks", clip.object_ids, [f"{number:05d}" for number in range(NUM_FRAMES)])
    return tmp_path


def shifted(object_ids: np.ndarray, columns: int) -> np.ndarray:
    moved = np.zeros_like(object_ids)
    moved[..., columns:] = object_ids[..., : object_ids.shape[-1] - columns]
    return moved


def keys(frame: int, *names: str) -> Prompts:
    """A box for every object in one frame; where it is makes no difference to the scores."""
    boxes = (ObjectPrompt(frame, object_id, box=(0.0, 0.0, 9.0, 9.0)) for object_id in range(1, len(names) + 1))
    return Prompts(names, tuple(boxes))


def test_true_masks_score_one_and_shifted_ones_what_still_overlaps():
    true = np.zeros((3, 40, 60), np.uint8)
    true[:, 5:35, 10:40] = 1
    (perfect,) = score_masks(true, true, keys(0, "square"))
    assert (perfect.cut, perfect.mean, perfect.worst, perfect.frames) == (1, 1, 1, 3)
    for columns in (3, 10, 15):
        found = true.copy()
        found[1] = shifted(true[1], columns)
        (score,) = score_masks(found, true, keys(1, "square"))
        overlap = (30 - columns) / (30 + columns)
        assert score.worst == score.cut == pytest.approx(overlap)
        assert score.worst_frame == 1
        assert score.mean == pytest.approx((2 + overlap) / 3)


def test_frames_without_the_object_do_not_count_but_finding_it_there_is_told(clip):
    found = clip.object_ids.copy()
    found[0, :10, :10] = 2
    square = score_masks(found, clip.object_ids, keys(3, "disc", "square"))[1]
    assert (square.frames, square.mean, square.found_elsewhere) == (NUM_FRAMES - 1, 1, 1)
    found[2][found[2] == 2] = 0
    missed = score_masks(found, clip.object_ids, keys(3, "disc", "square"))[1]
    assert (missed.mean, missed.cut) == (pytest.approx(2 / 3), 1)


def test_an_object_taken_for_another_scores_nothing(clip):
    swapped = np.array([0, 2, 1], np.uint8)[clip.object_ids]
    assert [score.mean for score in score_masks(swapped, clip.object_ids, keys(1, "disc", "square"))] == [0, 0]


def test_key_frames_show_most_of_the_object_in_their_part_of_the_clip():
    areas = np.array([0, 5, 9, 5, 0, 0, 3, 4, 1, 2])
    assert choose_key_frames(areas, 1) == [2]
    assert choose_key_frames(areas, 2) == [2, 7]
    assert choose_key_frames(areas, 50) == [1, 2, 3, 6, 7, 8, 9]


def test_a_box_holds_the_object_and_an_outline_goes_around_it_about_right(clip):
    for frame, object_id in ((0, 1), (2, 1), (2, 2)):
        mask = clip.object_ids[frame] == object_id
        x0, y0, x1, y1 = (round(value) for value in box_about(mask))
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert (x1 - x0) * (y1 - y0) < 2 * mask.sum()
        drawn = fill_outlines(ObjectPrompt(frame, object_id, outlines=outlines_of(mask)), *mask.shape)
        assert 0.85 < iou(drawn, mask) <= 1
        assert len(outlines_of(mask)[0]) < 20  # a user's clicks, not a copy of the border


def test_every_part_of_a_divided_object_is_outlined_but_no_specks():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 5:30] = mask[10:50, 45:70] = mask[2:5, 35:38] = True
    assert len(outlines_of(mask)) == 2


def test_the_user_shows_objects_only_where_they_are(clip):
    labelled = LabelledClip(clip.images, clip.object_ids, ("background", "disc", "square"))
    for kind in ("box", "outlines"):
        prompts = simulate_user(labelled, kind, key_frames=NUM_FRAMES)
        assert prompts.names == ("disc", "square")
        assert prompts.key_frames(1) == [0, 1, 2, 3]
        assert prompts.key_frames(2) == [1, 2, 3]
        for prompt in prompts.prompts:
            true = clip.object_ids[prompt.frame] == prompt.object_id
            assert iou(mask_from_prompt(clip.images[prompt.frame], prompt), true) > 0.85


def test_folders_are_read_as_preparation_reads_them(data, clip):
    read = read_labelled_clip(data)
    np.testing.assert_array_equal(read.images, clip.images)
    np.testing.assert_array_equal(read.object_ids, clip.object_ids)
    assert read.names == ("background", "object 1", "object 2")


def test_of_a_scene_folder_the_true_masks_count(data, clip):
    (data / "images").rename(data / "images_train")
    (data / "masks").rename(data / "segm_train")
    write_masks(data / "segm_sam", shifted(clip.object_ids, 5), [f"{number:05d}" for number in range(NUM_FRAMES)])
    (data / "scene.json").write_text(json.dumps({"objects": ["wall", "disc", "square"]}))
    read = read_labelled_clip(data)
    np.testing.assert_array_equal(read.object_ids, clip.object_ids)
    assert read.names == ("wall", "disc", "square")


def test_perfect_propagation_scores_one_and_less_when_its_masks_are_shifted(data, clip, monkeypatch):
    means = []
    for columns in (0, 2, 6):
        monkeypatch.setattr(segmentation, "segment_clip", lambda *_, by=columns: shifted(clip.object_ids, by))
        figures = benchmark_segmentation(SegmentationBenchmark(data), Console(quiet=True))
        means.append([obj["mean"] for obj in figures["objects"]])
    assert means[0] == [1, 1]
    for first, second in pairwise(means):
        assert all(np.array(first) - second > 0.05)


@pytest.mark.parametrize("prompts", ["box", "outlines"])
def test_the_built_in_segmenter_is_scored_and_the_figures_are_written(data, tmp_path, prompts):
    console = Console(record=True, width=160, file=(tmp_path / "printed").open("w"))
    options = SegmentationBenchmark(data, prompts, json=tmp_path / "figures.json")
    figures = benchmark_segmentation(options, console)
    assert all(0.8 < obj["mean"] <= 1 for obj in figures["objects"])
    assert [obj["frames"] for obj in figures["objects"]] == [NUM_FRAMES, NUM_FRAMES - 1]
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(figures))
    assert f"{figures['objects'][1]['mean']:.2f}" in console.export_text()


def test_what_cannot_be_measured_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="--key-frames: expected 1 or more, got 0"):
        benchmark_segmentation(SegmentationBenchmark(data, key_frames=0), Console(quiet=True))
    with pytest.raises(DatasetError, match="has no folder images_train or images"):
        benchmark_segmentation(SegmentationBenchmark(tmp_path / "elsewhere"), Console(quiet=True))
