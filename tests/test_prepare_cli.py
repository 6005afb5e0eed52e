"""`tools/prepare.py` as a user calls it: a scene to train from images and masks, and one clear line for bad input."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from osn_gs.config import load_config
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_files import read_json
from osn_gs.data.osn_layout import load_scene
from osn_gs.preprocess.pipeline import PrepareConfig
from osn_gs.run.command import EXIT_BAD_INPUT, run_tool
from osn_gs.run.prepare import prepare_from_arguments

PREPROCESS = Path(__file__).parents[1] / "osn_gs" / "preprocess"
SIZE = (160, 120)


def prepare(*arguments: object) -> int:
    return run_tool(prepare_from_arguments, [str(argument) for argument in arguments])


def one_error_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def help_text(capsys) -> str:
    with pytest.raises(SystemExit):
        prepare("--help")
    return capsys.readouterr().out


def test_everyday_options_have_short_names(capsys):
    text = help_text(capsys)
    for flag in ("--video", "--images", "--masks", "--out", "--focal", "--every", "--until", "--redo"):
        assert re.search(rf"{flag}\s", text), flag


def test_every_flag_that_messages_name_exists(capsys):
    flags = set(re.findall(r"--[a-z][a-z-]*(?:\.[a-z-]+)?", help_text(capsys)))
    for path in sorted(PREPROCESS.rglob("*.py")):
        named = set(re.findall(r"--[a-z][a-z-]*(?:\.[a-z-]+)?", path.read_text()))
        assert named <= flags, path


def textured_frames(num_frames: int, shift: float) -> list[np.ndarray]:
    """A random texture that moves `shift` pixels to the left from frame to frame."""
    texture = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0] + 200, 3), np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 1.5)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    moves = [np.array([[1, 0, -shift * t], [0, 1, 0]]) for t in range(num_frames)]
    return [cv2.warpAffine(texture, move, SIZE) for move in moves]


def write_clip(folder: Path, shift: float = 2.0, num_frames: int = 5) -> tuple[Path, Path]:
    """Images and masks (a square in the middle of each) in two folders."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir()
    masks.mkdir()
    for t, frame in enumerate(textured_frames(num_frames, shift)):
        cv2.imwrite(str(images / f"{t:04d}.png"), frame)
        ids = np.zeros(SIZE[::-1], np.uint8)
        ids[30:90, 40:110] = 1
        cv2.imwrite(str(masks / f"{t:04d}.png"), ids)
    return images, masks


def call_a_text_file_a_video(folder: Path) -> list[object]:
    path = folder / "clip.mp4"
    path.write_text("a letter to grandmother\n" * 100)
    return ["--video", path, "--masks", folder / "masks"]


def resize_one_frame(folder: Path) -> list[object]:
    path = folder / "images" / "0002.png"
    cv2.imwrite(str(path), cv2.imread(str(path))[:-10])
    return ["--images", folder / "images", "--masks", folder / "masks"]


def empty_all_masks(folder: Path) -> list[object]:
    for path in (folder / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros(SIZE[::-1], np.uint8))
    return ["--images", folder / "images", "--masks", folder / "masks"]


def show_an_object_once(folder: Path) -> list[object]:
    path = folder / "masks" / "0003.png"
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    ids[100:110, 20:40] = 2
    cv2.imwrite(str(path), ids)
    return ["--images", folder / "images", "--masks", folder / "masks"]


def rename_masks(folder: Path) -> list[object]:
    for path in sorted((folder / "masks").iterdir())[1:]:
        path.rename(path.with_name(f"mask_of_{int(path.stem) + 70}.png"))
    (folder / "masks" / "0000.png").unlink()
    return ["--images", folder / "images", "--masks", folder / "masks"]


def stand_still(folder: Path) -> list[object]:
    first = folder / "images" / "0000.png"
    for path in (folder / "images").iterdir():
        if path != first:
            shutil.copy(first, path)
    return ["--images", folder / "images", "--masks", folder / "masks", "--focal", 150]


def give_no_masks(folder: Path) -> list[object]:
    return ["--images", folder / "images"]


def give_two_sources(folder: Path) -> list[object]:
    return ["--images", folder / "images", "--video", folder / "clip.mp4", "--masks", folder / "masks"]


def give_no_source(folder: Path) -> list[object]:
    return ["--masks", folder / "masks"]


def redo_what_is_not_run(folder: Path) -> list[object]:
    return ["--images", folder / "images", "--masks", folder / "masks", "--until", "masks", "--redo", "sfm"]


BAD_INPUTS: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "text file called .mp4": (call_a_text_file_a_video, "clip.mp4"),
    "frames of different sizes": (resize_one_frame, "0002.png"),
    "empty masks": (empty_all_masks, "masks"),
    "object in one frame": (show_an_object_once, "--ignore"),
    "masks named otherwise": (rename_masks, "mask"),
    "video without motion": (stand_still, "stands still"),
    "no masks": (give_no_masks, "tools/segment.py --images"),
    "two sources": (give_two_sources, "both given"),
    "no source": (give_no_source, "--video"),
    "step to redo is not run": (redo_what_is_not_run, "--redo sfm"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line_and_code_2(tmp_path: Path, capsys, case: str):
    spoil, expected = BAD_INPUTS[case]
    write_clip(tmp_path)
    arguments = spoil(tmp_path)
    assert prepare(*arguments, "--out", tmp_path / "scene") == EXIT_BAD_INPUT
    assert expected in one_error_line(capsys)


def test_a_scene_folder_has_to_be_named(tmp_path: Path, capsys):
    images, masks = write_clip(tmp_path)
    assert prepare("--images", images, "--masks", masks) == EXIT_BAD_INPUT
    assert "--out" in one_error_line(capsys)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys):
    images, masks = write_clip(tmp_path)
    assert prepare("--images", images, "--masks", masks, "--out", images) == EXIT_BAD_INPUT
    assert "nothing was touched" in one_error_line(capsys)
    assert len(list(images.iterdir())) == 5


def test_a_failing_step_leaves_the_steps_before_it(tmp_path: Path, capsys):
    arguments = [*show_an_object_once_in(tmp_path), "--out", tmp_path / "scene"]
    assert prepare(*arguments) == EXIT_BAD_INPUT
    assert len(list((tmp_path / "scene" / "images_train").iterdir())) == 5
    assert not (tmp_path / "scene" / "segm_sam").exists()
    capsys.readouterr()
    assert prepare(*arguments, "--ignore", 2, "--until", "masks") == 0
    assert "frames" in capsys.readouterr().out
    assert read_json(tmp_path / "scene" / "scene.json")["objects"] == ["background", "object 1"]


def show_an_object_once_in(folder: Path) -> list[object]:
    write_clip(folder)
    return show_an_object_once(folder)


def test_the_written_options_go_on_where_a_run_stopped(tmp_path: Path, capsys, monkeypatch):
    """From another directory too: relative paths are stored as absolute ones."""
    write_clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert prepare("--images", "images", "--masks", "masks", "--out", "scene", "--until", "frames") == 0
    stored = tmp_path / "scene" / "prepare" / "config.yml"
    assert load_config(PrepareConfig, stored).frames.images == tmp_path / "images"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert prepare("--config", stored, "--until", "masks") == 0
    output = capsys.readouterr().out
    assert re.search(r"frames +unchanged, kept", output)
    assert re.search(r"masks +\d", output)


@pytest.fixture(scope="module")
def truth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo scene, large enough to follow points on its objects."""
    return write_demo_scene(tmp_path_factory.mktemp("truth") / "demo", 16, 240, 180, num_held_out=1)


@pytest.fixture(scope="module")
def prepared(truth_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo scene, prepared from its images, masks and focal length alone."""
    given = tmp_path_factory.mktemp("given")
    focal = load_scene(truth_folder).intrinsics[0, 0].item()
    shutil.copytree(truth_folder / "images_train", given / "images")
    shutil.copytree(truth_folder / "segm_sam", given / "masks")
    scene = given / "scene"
    assert prepare("--images", given / "images", "--masks", given / "masks", "--focal", focal, "--out", scene) == 0
    return scene


@pytest.mark.slow
def test_a_prepared_scene_can_be_trained_and_opened_in_colmap(prepared: Path, truth_folder: Path):
    scene, truth = load_scene(prepared), load_scene(truth_folder)
    assert scene.num_objects == truth.num_objects
    assert scene.num_frames == truth.num_frames
    assert (scene.object_ids == truth.object_ids).all()
    for k in range(scene.num_objects):
        model = pycolmap.Reconstruction(str(prepared / "sfm" / f"sparse{k}" / "0"))
        assert model.num_reg_images() == int(scene.visible[k].sum())
        assert model.num_reg_images() >= truth.num_frames / 2, "one of them is 38 pixels across"
        assert model.compute_mean_reprojection_error() < 1


class _Report(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_the_report_needs_no_other_file_and_names_every_object(prepared: Path):
    report = _Report()
    report.feed((prepared / "report.html").read_text())
    assert len(report.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in report.sources)
    text = (prepared / "report.txt").read_text()
    for name in read_json(prepared / "scene.json")["objects"]:
        assert name in report.text
        assert name in text


@pytest.mark.slow
def test_preparing_again_keeps_everything(prepared: Path, capsys):
    before = {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()}
    assert prepare("--config", prepared / "prepare" / "config.yml") == 0
    assert capsys.readouterr().out.count("unchanged, kept") == 6
    assert {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()} == before
