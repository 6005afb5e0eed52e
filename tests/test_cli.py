"""`tools/train.py` as a user calls it: the run folder it leaves, and one clear line for what cannot work."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from osn_gs.data.osn_layout import load_scene
from osn_gs.data.osn_writer import write_scene
from osn_gs.data.scene_data import SceneData, SparsePoints
from osn_gs.export.configurations import read_configurations
from osn_gs.export.ply import read_gaussian_ply
from osn_gs.object_scales.ranges import initial_scale_range
from osn_gs.run.command import EXIT_BAD_INPUT, EXIT_INTERRUPTED, run_tool
from osn_gs.run.train import train_from_arguments

ROOT = Path(__file__).parents[1]
QUICK = shlex.split(
    "--schedule.bootstrap-steps 30 --schedule.rounds 1 --schedule.network-steps 100 --schedule.scene-steps 5 "
    "--schedule.final-steps 5 --evaluate-configurations 1 --object-scales.samples 8 --export.frames 1 --device cpu "
    "--deformation.trial-steps 10"
)


def train(*arguments: object) -> int:
    tool = partial(train_from_arguments, demo_config=ROOT / "cfg" / "demo.yaml")
    return run_tool(tool, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished_run(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "demo"
    assert train("--data", demo_folder, "--run", run, *QUICK) == 0
    return run


def test_a_run_folder_holds_all_that_was_promised(finished_run: Path):
    for name in ("config.yml", "configurations.json", "stats/rounds.json", "stats/final.json"):
        assert (finished_run / name).is_file(), name
    pictures = {path.name for path in (finished_run / "preview").iterdir()}
    assert pictures == {"training_views.png", "configurations.png", "held_out.png", "valid_set.png"}
    assert all(cv2.imread(str(finished_run / "preview" / name)).std() > 5 for name in pictures)
    assert not list(finished_run.rglob(".*")), "nothing unfinished is left behind"


def test_configurations_hold_the_contact_one_first_and_only_positive_scales(finished_run: Path):
    configurations = read_configurations(finished_run / "configurations.json")
    assert configurations.configurations[0].name == "contact"
    assert len(configurations.configurations) == 9
    assert {interval.object_name for interval in configurations.intervals} == set(configurations.object_names[1:])
    for sample in configurations.configurations[1:]:
        assert sample.object_scales[0] == 1
        assert sample.score > 0.5, "only vectors the network calls valid are samples"


def test_every_exported_configuration_has_its_own_geometry(finished_run: Path):
    exports = sorted((finished_run / "export").iterdir())
    assert len(exports) == 4
    assert exports[-1].name == "contact"
    manifests = [json.loads((path / "manifest.json").read_text()) for path in exports]
    clouds = [read_gaussian_ply(path / manifest["frames"][0]["file"]) for path, manifest in zip(exports, manifests)]  # noqa: B905
    first, last = manifests[0]["frames"][0]["object_rows"][0]
    assert torch.equal(clouds[0].means[first:last], clouds[1].means[first:last]), "the background stands still"
    assert not torch.equal(clouds[0].means[last:], clouds[1].means[last:])


def test_statistics_name_every_split_and_the_set(finished_run: Path):
    statistics = json.loads((finished_run / "stats" / "final.json").read_text())
    assert set(statistics["pictures"]) == {"train", "test", "stereo"}
    spread = statistics["pictures"]["test"]["psnr"]
    assert spread["best"] >= spread["median"] >= spread["worst"] > 5
    assert spread["contact"] > 5
    assert 0 <= statistics["learned_set"]["iou"] <= 1
    assert 0 <= statistics["truth"]["true_depth_set"]["iou"] <= 1


def test_a_finished_run_is_never_overwritten(finished_run: Path, demo_folder: Path, capsys):
    before = (finished_run / "config.yml").read_bytes()
    assert train("--data", demo_folder, "--run", finished_run) == EXIT_BAD_INPUT
    assert "already holds a run" in one_error_line(capsys)
    assert (finished_run / "config.yml").read_bytes() == before


def test_resuming_a_finished_run_finishes_it_again_alike(finished_run: Path):
    configurations, statistics = finished_run / "configurations.json", finished_run / "stats" / "final.json"
    before = configurations.read_bytes(), statistics.read_bytes()
    shutil.rmtree(finished_run / "stats")
    configurations.unlink()
    assert train("--run", finished_run, "--resume") == 0
    assert (configurations.read_bytes(), statistics.read_bytes()) == before


def test_resuming_with_other_options_is_refused(finished_run: Path, capsys):
    assert train("--run", finished_run, "--resume", "--seed", 5) == EXIT_BAD_INPUT
    assert "seed differ" in one_error_line(capsys)


def one_error_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def break_nothing(folder: Path) -> list[str]:
    shutil.rmtree(folder)
    return []


def lose_a_frame(folder: Path) -> list[str]:
    (folder / "images_train" / "0003.png").unlink()
    return []


def resize_a_mask(folder: Path) -> list[str]:
    path = sorted((folder / "segm_sam").iterdir())[2]
    np.save(path, np.load(path)[:-4])
    return []


def leave_a_gap_in_the_ids(folder: Path) -> list[str]:
    for path in (folder / "segm_sam").iterdir():
        ids = np.load(path)
        np.save(path, np.where(ids == 3, 7, ids))
    return []


def spoil_a_pose(folder: Path) -> list[str]:
    path = next(folder.rglob("pose1.npy"))
    poses = np.load(path)
    poses[4, 0, 3] = np.nan
    np.save(path, poses)
    return []


def keep_one_object(folder: Path) -> list[str]:
    for path in (folder / "segm_sam").iterdir():
        np.save(path, np.zeros_like(np.load(path)))
    for pattern in ("pose[123].npy", "vis[123].npy", "depth[123].npy", "vid[123].npy", "scale[123].npy"):
        for path in folder.rglob(pattern):
            path.unlink()
    return []


def misspell_an_option(folder: Path) -> list[str]:
    config = folder.parent / "my.yaml"
    config.write_text("schedule: {boostrap_steps: 3}")
    return ["--config", str(config)]


BAD_INPUTS = {
    "no such folder": (break_nothing, "no such folder"),
    "missing frame": (lose_a_frame, "0003"),
    "mask of another size": (resize_a_mask, "mask"),
    "mask ids with a gap": (leave_a_gap_in_the_ids, "7"),
    "NaN pose": (spoil_a_pose, "pose1.npy"),
    "one object only": (keep_one_object, "object"),
    "unknown config key": (misspell_an_option, "did you mean bootstrap_steps"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line_and_code_2(demo_folder: Path, tmp_path: Path, capsys, case: str):
    break_it, expected = BAD_INPUTS[case]
    scene = tmp_path / "scene"
    shutil.copytree(demo_folder, scene)
    extra = break_it(scene)
    run = tmp_path / "run"
    assert train("--data", scene, "--run", run, *extra, *QUICK) == EXIT_BAD_INPUT
    assert expected in one_error_line(capsys)
    assert not run.exists(), "a run that could not start leaves nothing behind"


def test_nothing_to_resume_is_said(tmp_path: Path, capsys):
    assert train("--run", tmp_path / "none", "--resume") == EXIT_BAD_INPUT
    assert "no run to resume here" in one_error_line(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_missing_gpu_is_said(demo_folder: Path, tmp_path: Path, capsys):
    assert train("--data", demo_folder, "--run", tmp_path / "run", "--device", "cuda") == EXIT_BAD_INPUT
    assert "no CUDA device" in one_error_line(capsys)


def patch_before_a_far_wall(num_frames: int = 6, width: int = 48, height: int = 36) -> SceneData:
    """A small textured square near the camera, a wall near the far end, and nothing that ever tells their order."""
    generator = torch.Generator().manual_seed(0)
    intrinsics = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]])
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([columns, rows], -1).reshape(-1, 2)
    texture = (torch.rand(2, 12, 12, 3, generator=generator) * 255).to(torch.uint8)
    images, masks, poses = [], [], []
    points: list[list[torch.Tensor]] = [[], []]
    for t in range(num_frames):
        origins = torch.tensor([[-0.1 * t, 0.0, 7.6], [0.4 - 0.12 * t, 0.1, 2.0]])  # of wall and square, in the camera
        on_plane = torch.stack([((pixels - intrinsics[:2, 2]) / 50 * z) for z in origins[:, 2]]) - origins[:, None, :2]
        square = (on_plane[1].abs() < 0.25).all(-1)
        ids = square.long()
        where = on_plane[ids, torch.arange(len(ids))]
        cell = torch.tensor([1.2, 0.1])[ids]
        texel = (where / cell[:, None]).floor().long() % 12
        images.append(texture[ids, texel[:, 0], texel[:, 1]].reshape(height, width, 3))
        masks.append(ids.reshape(height, width).to(torch.uint8))
        pose = torch.eye(4).repeat(2, 1, 1)
        pose[:, :3, 3] = origins
        poses.append(pose)
        for k in (0, 1):
            chosen = torch.nonzero(ids == k).squeeze(1)[:: 7 if k == 0 else 2]
            points[k].append(torch.cat([torch.full((len(chosen), 1), float(t)), pixels[chosen]], dim=1))
    sparse = []
    for k, depth in enumerate((7.6, 2.0)):
        rows_of_k = torch.cat(points[k])
        depths = torch.full((len(rows_of_k),), depth)
        sparse.append(
            SparsePoints(
                rows_of_k[:, 0].long(), rows_of_k[:, 1:], depths, torch.full_like(depths, 0.3), torch.ones_like(depths)
            )
        )
    found = initial_scale_range([sparse[1].depths], near=1.0, far=8.0)
    cam_from_obj = torch.stack(poses, dim=1)
    cam_from_obj[1, :, :3, 3] *= found.unit_factor
    sparse[1] = SparsePoints(
        sparse[1].frames, sparse[1].pixels, found.unit_factor * sparse[1].depths, sparse[1].errors, sparse[1].weights
    )
    return SceneData(
        name="patch",
        images=torch.stack(images),
        object_ids=torch.stack(masks),
        intrinsics=intrinsics,
        cam_from_obj=cam_from_obj,
        visible=torch.ones(2, num_frames, dtype=torch.bool),
        sparse_points=tuple(sparse),
        scale_ranges=torch.tensor([[1.0, 1.0], [found.lo, found.hi]]),
        near=1.0,
        far=8.0,
        object_names=("background", "patch"),
    )


def test_without_any_occlusion_the_run_says_the_set_is_bounded_by_near_and_far_alone(tmp_path: Path, capsys):
    write_scene(tmp_path / "scene", patch_before_a_far_wall())
    assert load_scene(tmp_path / "scene").num_objects == 2
    assert train("--data", tmp_path / "scene", "--run", tmp_path / "run", *QUICK) == 0
    assert "bounded by near/far alone" in " ".join(capsys.readouterr().out.split())
    (interval,) = read_configurations(tmp_path / "run" / "configurations.json").intervals
    assert (interval.lo_bounded_by, interval.hi_bounded_by) == ("near/far", "near/far")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_saves_and_says_how_to_go_on(demo_folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--data", str(demo_folder), "--run", str(run)]
    process = subprocess.Popen([*command, *QUICK, "--schedule.bootstrap-steps", "100000"], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (run / "config.yml").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert "--resume" in " ".join(output.decode().split())
    assert list((run / "checkpoints").iterdir())
