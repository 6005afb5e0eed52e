"""`tools/view.py` and `--view`: what they say to bad input, and that a run opens with and without its video."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from osn_gs.config import config_to_yaml
from osn_gs.data.osn_layout import load_scene
from osn_gs.errors import CheckpointError, ConfigError
from osn_gs.run.folder import RunFolder
from osn_gs.run.live_view import LiveView
from osn_gs.run.open_run import newest_run, open_run
from osn_gs.run.serve import address, start_server
from osn_gs.run.view import viewed_run
from osn_gs.training.checkpoints import save_checkpoint
from osn_gs.training.config import DeformationConfig, ScheduleConfig, TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer
from osn_gs.training.start import initial_scene

PORT = 8830


@pytest.fixture(scope="module")
def scene_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene that can be taken away from its run."""
    return Path(shutil.copytree(demo_folder, tmp_path_factory.mktemp("own") / "demo"))


@pytest.fixture(scope="module")
def optimizer(scene_folder: Path) -> JointOptimizer:
    """A run with one round."""
    data = load_scene(scene_folder)
    schedule = ScheduleConfig(bootstrap_steps=4, rounds=0, network_steps=20, final_steps=0)
    config = TrainConfig(data=scene_folder, schedule=schedule, deformation=DeformationConfig(default="rigid"))
    optimizer = JointOptimizer(initial_scene(data, config.gaussians), data, config, torch.Generator().manual_seed(0))
    for _ in optimizer.run():
        pass
    return optimizer


@pytest.fixture
def run(optimizer: JointOptimizer, tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path / "run")
    save_checkpoint(folder.checkpoints, optimizer)
    folder.config.write_text(config_to_yaml(optimizer.config))
    return folder.root


def test_a_run_opens_with_what_it_has_learned(run: Path, optimizer: JointOptimizer):
    opened = open_run(run, Console(quiet=True))
    assert opened.learned.accuracy_threshold == optimizer.rounds[-1].learned_set.accuracy_threshold
    scales = optimizer.data.truth.object_scales[None].double()
    assert torch.equal(opened.oracle.accuracy(scales), optimizer.current_oracle().accuracy(scales))
    viewed = viewed_run(opened, torch.device("cpu"))
    assert viewed.frames.shape == (8, 48, 64, 3)
    assert viewed.worlds.judge(scales[0]).accuracy == float(opened.oracle.accuracy(scales)[0])


def test_a_run_opens_without_its_video_and_says_what_is_missing(run: Path, scene_folder: Path, capsys):
    scene_folder.rename(scene_folder.with_name("elsewhere"))
    try:
        opened = open_run(run, Console(soft_wrap=True))
    finally:
        scene_folder.with_name("elsewhere").rename(scene_folder)
    assert opened.data is None
    assert opened.oracle is None
    assert "video of this run is not at hand" in capsys.readouterr().out
    verdict = viewed_run(opened, torch.device("cpu")).worlds.judge(torch.ones(4))
    assert verdict.accuracy is None
    assert 0 < verdict.score < 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CheckpointError, match="no run here"):
        open_run(tmp_path, Console(quiet=True))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run below runs"):
        newest_run()


def test_the_newest_run_is_the_one_written_last(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second", "unfinished"):
        shutil.copytree(run, tmp_path / "runs" / name)
    shutil.rmtree(tmp_path / "runs" / "unfinished" / "checkpoints")
    (tmp_path / "runs" / "first" / "checkpoints" / "step_9").mkdir()
    assert newest_run() == Path("runs/first")


@pytest.mark.parametrize(("host", "port"), [("300.1.1.1", PORT), ("192.0.2.1", PORT), ("127.0.0.1", 99999)])
def test_an_address_that_cannot_be_served_is_refused(host: str, port: int):
    with pytest.raises(ConfigError, match=r"--host|--port"):
        start_server(host, port, "page", Console(quiet=True))


def test_an_open_address_warns_and_a_taken_port_gives_way(capsys):
    console = Console(soft_wrap=True)
    first = start_server("127.0.0.1", PORT, "page", console)
    second = start_server("0.0.0.0", first.get_port(), "page", console)
    try:
        said = capsys.readouterr().out
        assert said.count("no password") == 1
        assert second.get_port() != first.get_port()
        assert address(second) == f"http://127.0.0.1:{second.get_port()}"
    finally:
        first.stop()
        second.stop()


def test_watching_a_training_shows_its_rounds(optimizer: JointOptimizer):
    server = start_server("127.0.0.1", PORT, "page", Console(quiet=True))
    live = LiveView(server, optimizer, optimizer.data)
    try:
        before = live._viewer.viewed
        means = optimizer.scene.objects[1].gaussians.params["means"]
        shown = before.scene.objects[1].gaussians.means.clone()
        with torch.no_grad():
            means.mul_(1.5)
        assert torch.equal(before.scene.objects[1].gaussians.means, shown), "nothing changes under the viewer's hands"
        live.after_step(optimizer.rounds[-1])
        after = live._viewer.viewed
        assert after.scene is not optimizer.scene
        assert torch.equal(after.scene.objects[1].gaussians.means, optimizer.scene.objects[1].gaussians.means)
        scales = optimizer.data.truth.object_scales.double()
        assert after.worlds.judge(scales).accuracy == float(optimizer.current_oracle().accuracy(scales[None])[0])
    finally:
        live.close()
        server.stop()
