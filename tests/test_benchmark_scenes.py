"""`tools/benchmark.py scenes`: trains, evaluates, goes on where it was stopped, and writes one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from osn_gs.benchmarks import scenes
from osn_gs.benchmarks.command import benchmark_from_arguments
from osn_gs.benchmarks.scenes import VARIANTS, ScenesBenchmark, benchmark_scenes, markdown_table
from osn_gs.config import config_to_yaml
from osn_gs.errors import ConfigError
from osn_gs.run.command import EXIT_BAD_INPUT, run_tool
from osn_gs.run.resources import read_resource_use
from osn_gs.training.config import DeformationConfig, ExportConfig, ObjectScalesConfig, ScheduleConfig, TrainConfig
from osn_gs.training.deformation import deformation_modes

TINY = TrainConfig(
    schedule=ScheduleConfig(bootstrap_steps=20, rounds=1, network_steps=40, scene_steps=4, final_steps=4),
    object_scales=ObjectScalesConfig(samples=15),
    export=ExportConfig(configurations=0, frames=1),
    evaluate_configurations=1,
    deformation=DeformationConfig(default="rigid"),
    device="cpu",
)


@pytest.fixture(scope="module")
def options(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ScenesBenchmark:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "toys.yaml").write_text(config_to_yaml(replace(TINY, data=demo_folder)))
    return ScenesBenchmark((folder / "toys.yaml",), folder / "out", ("full",), num_configurations=15)


@pytest.fixture(scope="module")
def figures(options: ScenesBenchmark) -> dict:
    return benchmark_scenes(options, Console(quiet=True))


def test_a_scene_is_trained_and_evaluated_beside_baselines(figures: dict, options: ScenesBenchmark):
    (row,) = figures["rows"]
    assert (row["scene"], row["variant"], row["seed"]) == ("toys", "full", 0)
    assert set(row["evaluations"]) == {"train", "test", "stereo"}
    assert {"middle", "random_mean", "released"} < set(row["evaluations"]["test"]["scores"]["all"]["psnr"])
    assert row["resources"]["training_seconds"] > 0
    assert row["resources"]["peak_memory"] > 100e6
    assert json.loads((options.out / "figures.json").read_text()) == figures


def test_the_table_has_the_figures_of_every_line(figures: dict, options: ScenesBenchmark):
    table = (options.out / "table.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    methods = [line[1] for line in lines[2:]]
    methods = [method.removesuffix(" *") for method in methods]
    assert methods[:2] == ["ours, sampled", "ours, contact"]
    assert methods[-2:] == ["middle of the ranges", "random scales"]
    column = next(i for i, title in enumerate(lines[0]) if title.startswith("test PSNR"))
    psnr = figures["rows"][0]["evaluations"]["test"]["scores"]["all"]["psnr"]
    assert lines[2][column] == " / ".join(f"{psnr[name]:.2f}" for name in ("best", "mean", "median", "worst"))
    assert lines[3][column] == f"{psnr['contact']:.2f}"
    assert lines[-2][column] == f"{psnr['middle']:.2f}"


def test_called_again_it_does_nothing_twice(figures: dict, options: ScenesBenchmark):
    run = options.out / "toys" / "full-0"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    (run / "stats" / "eval_stereo.json").unlink()
    assert benchmark_scenes(options, Console(quiet=True)) == figures
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["eval_stereo.json"], "only what was missing is made anew"


def test_an_evaluation_of_other_options_is_made_anew(figures: dict, options: ScenesBenchmark):
    path = options.out / "toys" / "full-0" / "stats" / "eval_test.json"
    without_baselines = json.loads(path.read_text())
    without_baselines["options"]["baselines"] = False
    path.write_text(json.dumps(without_baselines))
    assert benchmark_scenes(options, Console(quiet=True)) == figures


def test_a_run_of_other_options_is_told_and_the_other_rows_stay(
    figures: dict, options: ScenesBenchmark, tmp_path: Path, demo_folder: Path
):
    longer = replace(TINY, data=demo_folder, schedule=replace(TINY.schedule, bootstrap_steps=21))
    changed = tmp_path / "toys.yaml"
    changed.write_text(config_to_yaml(longer))
    console = Console(record=True, width=200)
    with pytest.raises(ConfigError, match="toys, full, seed 0"):
        benchmark_scenes(replace(options, configs=(changed,)), console)
    assert "schedule differ" in console.export_text()
    assert json.loads((options.out / "figures.json").read_text()) == figures


def test_what_is_not_there_is_not_shown_as_a_number(figures: dict):
    row = json.loads(json.dumps(figures["rows"][0]))
    row["resources"] = None
    row["evaluations"]["test"]["scores"]["all"]["psnr"]["best"] = None
    row["evaluations"]["test"]["drawn"]["valid_set"] = "oracle"
    lines = markdown_table([row]).splitlines()
    assert lines[2].endswith("| - | - |")
    assert "| ours, sampled * |" in lines[2]
    assert "inf" not in lines[2]


def test_a_training_that_dies_is_not_taken_for_an_interrupt(
    options: ScenesBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        scenes, "_train", os.abort
    )  # found by its name in the new process, which has no arguments for it
    with pytest.raises(ConfigError, match="could not be trained"):
        benchmark_scenes(replace(options, out=tmp_path / "out"), Console(quiet=True))


def test_several_seeds_are_shown_as_their_mean(figures: dict):
    other = json.loads(json.dumps(figures["rows"][0]))
    other["seed"] = 1
    psnr = other["evaluations"]["train"]["scores"]["all"]["psnr"]
    first = psnr["mean"]
    psnr["mean"] += 1
    assert f"{first + 0.5:.2f} ± 0.50" in markdown_table([figures["rows"][0], other])


@pytest.mark.parametrize("variant", ["no-bootstrap", "R=1", "R=10"])
def test_variants_take_as_many_steps_in_all(variant: str):
    config = TrainConfig()
    varied = VARIANTS[variant](config).schedule
    assert varied.gaussian_steps == config.schedule.gaussian_steps
    assert varied != config.schedule


def test_no_object_bends_in_the_rigid_variant():
    config = TrainConfig(deformation=DeformationConfig(objects=("car=deformable",)))
    modes = deformation_modes(VARIANTS["rigid"](config).deformation, ["background", "car", "dog"])
    assert set(modes) == {"rigid"}


def test_an_option_file_that_does_not_fit_is_told(tmp_path: Path, capsys):
    (tmp_path / "a.yaml").write_text("data: nowhere\n")
    arguments = ["scenes", "--configs", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "out")]
    assert run_tool(benchmark_from_arguments, arguments) == EXIT_BAD_INPUT
    assert "a, full, seed 0" in " ".join(capsys.readouterr().err.split())
    twice = [*arguments[:3], str(tmp_path / "a.yaml"), *arguments[3:]]
    assert run_tool(benchmark_from_arguments, twice) == EXIT_BAD_INPUT
    assert "each once" in capsys.readouterr().err


def test_the_peak_of_memory_is_the_trainings_own(tmp_path: Path):
    large = torch.zeros(300_000_000, dtype=torch.uint8) + 1
    code = "from pathlib import Path; from osn_gs.run.resources import ResourceMeter; "
    code += f"ResourceMeter(Path({str(tmp_path / 'use.json')!r}), False).save()"
    alone = read_resource_use(measured(tmp_path, code)).peak_memory
    del large
    assert abs(alone - read_resource_use(measured(tmp_path, code)).peak_memory) < 50e6


def measured(folder: Path, code: str) -> Path:
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder / "use.json"
