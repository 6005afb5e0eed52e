"""`tools/benchmark.py scenes`: trains, evaluates, goes on where it was stopped, and writes one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from osn_gs.benchmarks.command import benchmark_from_arguments
from osn_gs.benchmarks.scenes import VARIANTS, ScenesBenchmark, benchmark_scenes, markdown_table
from osn_gs.config import config_to_yaml, load_config
from osn_gs.run.command import EXIT_BAD_INPUT, run_tool
from osn_gs.training.config import ExportConfig, ObjectScalesConfig, ScheduleConfig, TrainConfig

TINY = TrainConfig(
    schedule=ScheduleConfig(bootstrap_steps=20, rounds=1, network_steps=40, scene_steps=4, final_steps=4),
    object_scales=ObjectScalesConfig(samples=15),
    export=ExportConfig(configurations=0, frames=1),
    evaluate_configurations=1,
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


def test_an_option_file_that_does_not_fit_is_told(tmp_path: Path, capsys):
    (tmp_path / "a.yaml").write_text("data: nowhere\n")
    arguments = ["scenes", "--configs", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "out")]
    assert run_tool(benchmark_from_arguments, arguments) == EXIT_BAD_INPUT
    assert "a, full, seed 0" in capsys.readouterr().err
    twice = [*arguments[:3], str(tmp_path / "a.yaml"), *arguments[3:]]
    assert run_tool(benchmark_from_arguments, twice) == EXIT_BAD_INPUT
    assert "each once" in capsys.readouterr().err


def test_runs_are_told_apart_by_their_folders(options: ScenesBenchmark, figures: dict):
    config = load_config(TrainConfig, options.out / "toys" / "full-0" / "config.yml")
    assert config.run == options.out / "toys" / "full-0"
    assert config.schedule == TINY.schedule
