"""`tools/render.py`: pictures of a split, and videos along a path, of the configurations asked for."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from osn_gs.config import config_to_yaml
from osn_gs.data.osn_layout import load_scene
from osn_gs.export.configurations import Configuration, ConfigurationSet, write_configurations
from osn_gs.run.command import run_tool
from osn_gs.run.folder import RunFolder
from osn_gs.run.open_run import open_run
from osn_gs.run.render import render_from_arguments
from osn_gs.scene.render import render_view
from osn_gs.training.checkpoints import save_checkpoint
from osn_gs.training.config import TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer
from osn_gs.training.start import initial_scene

SCALES = {"contact": (1.0, 1.0, 1.0, 1.0), "configuration_000": (1.0, 0.6, 0.8, 0.7)}


@pytest.fixture(scope="module")
def run(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run right after its start, with two configurations."""
    data = load_scene(demo_folder)
    config = TrainConfig(data=demo_folder)
    optimizer = JointOptimizer(initial_scene(data, config.gaussians), data, config, torch.Generator().manual_seed(0))
    folder = RunFolder(tmp_path_factory.mktemp("render") / "run")
    save_checkpoint(folder.checkpoints, optimizer)
    folder.config.write_text(config_to_yaml(config))
    samples = tuple(Configuration(name, scales, 0.9, 0.9) for name, scales in SCALES.items())
    write_configurations(folder.configurations, ConfigurationSet(data.object_names, (), samples))
    return folder.root


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_views_of_a_split_come_with_depth_and_ids(run: Path, tmp_path: Path):
    arguments = [str(run), "--split", "test", "--configuration", "all", "--out", str(tmp_path)]
    assert run_tool(render_from_arguments, arguments) == 0
    opened = open_run(run, Console(quiet=True))
    views = opened.data.held_out["test"]
    for name in SCALES:
        folder = tmp_path / "test" / name
        assert len(list((folder / "rgb").iterdir())) == len(views)
    view = views[1]
    picture = render_view(
        opened.trained.scene,
        torch.tensor(SCALES["configuration_000"]),
        view.time_step,
        view.cam_from_background.float(),
        view.intrinsics.float(),
        (64, 48),
    )
    written = tmp_path / "test" / "configuration_000"
    depth, ids = (np.load(written / kind / "0001.npy") for kind in ("depth", "object_ids"))
    np.testing.assert_allclose(depth, picture.depth.detach().numpy(), rtol=1e-5)
    np.testing.assert_array_equal(ids, picture.object_ids.numpy())
    rgb = np.asarray(Image.open(written / "rgb" / "0001.png"))
    np.testing.assert_allclose(rgb, picture.rgb.detach().clamp(0, 1).numpy() * 255, atol=0.51)
    assert not np.array_equal(rgb, np.asarray(Image.open(tmp_path / "test" / "contact" / "rgb" / "0001.png")))


def test_every_training_frame_is_rendered(run: Path, tmp_path: Path):
    assert run_tool(render_from_arguments, [str(run), "--split", "train", "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in (tmp_path / "train" / "contact" / "rgb").iterdir())
    assert names == [f"{t:04d}.png" for t in range(8)]


@pytest.mark.parametrize("change", ["names", "twice", "slash"])
def test_a_file_of_other_configurations_is_refused(run: Path, tmp_path: Path, capsys, change: str):
    content = json.loads((run / "configurations.json").read_text())
    if change == "names":
        content["object_names"][1] = "another toy"
    else:
        content["configurations"][1]["name"] = {"twice": "contact", "slash": "../contact"}[change]
    (tmp_path / "other.json").write_text(json.dumps(content))
    options = ["--configurations", str(tmp_path / "other.json"), "--out", str(tmp_path / "out")]
    assert run_tool(render_from_arguments, [str(run), *options]) == 2
    assert "other.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["swing", "spiral", "interpolate"])
def test_a_path_becomes_a_video(run: Path, tmp_path: Path, path: str):
    arguments = [str(run), "--path", path, "--seconds", "0.5", "--fps", "20", "--height", "60", "--out", str(tmp_path)]
    assert run_tool(render_from_arguments, arguments) == 0
    pictures = frames(tmp_path / "path" / "contact.mp4")
    assert len(pictures) == 10
    assert pictures[0].shape == (60, 80, 3)
    assert np.abs(pictures[0].astype(int) - pictures[5]).mean() > 2, "the camera moves"


def test_worlds_stand_side_by_side_in_one_video(run: Path, tmp_path: Path):
    options = ["--configuration", "contact,1", "--side-by-side", "--seconds", "0.2", "--height", "60", "--still", "0.5"]
    assert run_tool(render_from_arguments, [str(run), *options, "--out", str(tmp_path)]) == 0
    still, video = sorted((tmp_path / "path").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (still.name, video.name) == ("side_by_side.png", "side_by_side.mp4")
    pictures = frames(video)
    assert pictures[0].shape[1] >= 160, "two pictures of 80"
    shown = np.asarray(Image.open(still)).astype(int)
    differences = [np.abs(picture[: shown.shape[0], : shown.shape[1]] - shown).mean() for picture in pictures]
    assert int(np.argmin(differences)) == 2


def test_configurations_come_from_a_file_of_their_own(run: Path, tmp_path: Path):
    configurations = json.loads((run / "configurations.json").read_text())
    configurations["configurations"] = configurations["configurations"][:1]
    configurations["configurations"][0]["name"] = "mine"
    (tmp_path / "few.json").write_text(json.dumps(configurations))
    options = ["--configurations", str(tmp_path / "few.json"), "--configuration", "all", "--split", "stereo"]
    assert run_tool(render_from_arguments, [str(run), *options, "--out", str(tmp_path)]) == 0
    assert [path.name for path in (tmp_path / "stereo").iterdir()] == ["mine"]


def test_a_path_file_says_size_and_rate(run: Path, tmp_path: Path):
    entry = {"camera_to_world": np.eye(4).flatten().tolist(), "fov": 40.0, "aspect": 1.0}
    content = {"camera_type": "perspective", "render_height": 32, "render_width": 40, "fps": 10, "seconds": 0.3}
    (tmp_path / "path.json").write_text(json.dumps({**content, "camera_path": [entry] * 3, "keyframes": []}))
    arguments = [str(run), "--path", str(tmp_path / "path.json"), "--out", str(tmp_path)]
    assert run_tool(render_from_arguments, arguments) == 0
    pictures = frames(tmp_path / "path" / "contact.mp4")
    assert [picture.shape for picture in pictures] == [(32, 40, 3)] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--configuration", "9"], "expected a number from 0 to 1"),
        (["--configuration", "nobody"], "a name such as contact"),
        (["--path", "missing.json"], "missing.json"),
        (["--height", "2"], "height"),
        (["--still", "1.5"], "still"),
        (["--split", "test", "--side-by-side"], "of videos"),
    ],
)
def test_what_cannot_be_rendered_is_told(run: Path, tmp_path: Path, capsys, options: list[str], said: str):
    assert run_tool(render_from_arguments, [str(run), *options, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_split_that_the_scene_lacks_is_told(run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    opened = open_run(run, Console(quiet=True))
    opened.data.held_out.pop("stereo", None)
    monkeypatch.setattr("osn_gs.run.render.open_run", lambda *_: opened)
    assert run_tool(render_from_arguments, [str(run), "--split", "stereo", "--out", str(tmp_path)]) == 2
    assert "it has train, test" in capsys.readouterr().err
