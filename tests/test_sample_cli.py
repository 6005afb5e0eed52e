"""`tools/sample.py`: what it draws is valid, as far apart as asked, and agrees with what is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from short_run import write_short_run

from osn_gs.export.configurations import ConfigurationSet, Draw, read_configurations
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.ranges import uniform_scales
from osn_gs.run.command import run_tool
from osn_gs.run.open_run import open_run
from osn_gs.run.sample import sample_from_arguments


@pytest.fixture(scope="module")
def run(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one short round."""
    return write_short_run(tmp_path_factory.mktemp("sample") / "run", demo_folder, 60, 300)


def drawn(run: Path, target: Path, *arguments: str) -> ConfigurationSet:
    assert run_tool(sample_from_arguments, [str(run), "--out", str(target), *arguments]) == 0
    return read_configurations(target)


def scales(configurations: ConfigurationSet) -> torch.Tensor:
    return torch.tensor([sample.object_scales for sample in configurations.configurations], dtype=torch.float64)


def test_draws_are_valid_and_repeat_with_their_seed(run: Path, tmp_path: Path):
    first = drawn(run, tmp_path / "a.json", "--num", "30")
    assert [sample.name for sample in first.configurations][:2] == ["contact", "configuration_000"]
    assert len(first.configurations) == 31
    assert all(sample.score > 0.5 for sample in first.configurations[1:])
    assert drawn(run, tmp_path / "b.json", "--num", "30") == first
    assert drawn(run, tmp_path / "c.json", "--num", "30", "--seed", "1") != first


def test_a_fixed_scale_is_met_and_its_interval_is_a_point(run: Path, tmp_path: Path):
    free = drawn(run, tmp_path / "free.json", "--num", "5")
    most_accurate = max(free.configurations[1:], key=lambda sample: sample.oracle_accuracy)
    name, scale = free.object_names[1], most_accurate.object_scales[1]
    fixed = drawn(run, tmp_path / "fixed.json", "--num", "20", "--fix", f"{name}={scale!r}")
    assert all(sample.object_scales[1] == pytest.approx(scale, rel=1e-9) for sample in fixed.configurations)
    assert all(sample.score > 0.5 for sample in fixed.configurations)
    assert "contact" not in [sample.name for sample in fixed.configurations]
    (interval,) = [interval for interval in fixed.intervals if interval.object_name == name]
    assert (interval.lo, interval.hi) == pytest.approx((scale, scale))
    assert interval.lo_bounded_by == interval.hi_bounded_by == "held"
    assert len({sample.object_scales for sample in fixed.configurations}) == 20, "the others stay free"


def test_diverse_draws_lie_farther_from_each_other(run: Path, tmp_path: Path):
    def least_distance(configurations: ConfigurationSet) -> float:
        log_scales = scales(configurations)[1:].log()
        return float(torch.pdist(log_scales).min())

    even = drawn(run, tmp_path / "even.json", "--num", "12")
    diverse = drawn(run, tmp_path / "diverse.json", "--num", "12", "--diverse")
    assert len(diverse.configurations) == len(even.configurations)
    assert least_distance(diverse) > 2 * least_distance(even)


def test_a_file_says_how_its_configurations_were_drawn(run: Path, tmp_path: Path):
    assert drawn(run, tmp_path / "even.json", "--num", "3").drawn == Draw("learned", diverse=False)
    assert drawn(run, tmp_path / "diverse.json", "--num", "3", "--diverse").drawn == Draw("learned", diverse=True)


def test_what_needs_the_video_is_not_lost_without_it(run: Path, tmp_path: Path, capsys):
    gone = tmp_path / "gone"
    shutil.copytree(run, gone)
    drawn(run, gone / "configurations.json", "--num", "3")
    before = (gone / "configurations.json").read_bytes()
    config = (gone / "config.yml").read_text()
    data = next(line for line in config.splitlines() if line.startswith("data:"))
    (gone / "config.yml").write_text(config.replace(data, f"data: {tmp_path / 'nowhere'}"))
    assert run_tool(sample_from_arguments, [str(gone), "--num", "4"]) == 2
    assert "--out FILE" in capsys.readouterr().err
    assert (gone / "configurations.json").read_bytes() == before
    assert len(drawn(gone, tmp_path / "own.json", "--num", "4").configurations) == 4


def test_a_network_that_calls_nothing_valid_is_told(run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ObjectScaleNetwork, "logit", lambda self, scales: scales[:, 0] * 0 - 1.0)
    from_oracle = drawn(run, tmp_path / "a.json", "--num", "3")
    assert from_oracle.drawn == Draw("oracle", diverse=False)
    assert "calls nothing valid yet" in capsys.readouterr().out


def test_the_printed_volume_is_that_of_uniform_draws(run: Path, tmp_path: Path, capsys):
    drawn(run, tmp_path / "a.json", "--num", "5")
    told = float(capsys.readouterr().out.split("learned set fills ")[1].split(" %")[0]) / 100
    learned = open_run(run, Console(quiet=True)).learned
    draws = uniform_scales(learned.scale_ranges, 400_000, torch.Generator().manual_seed(5))
    assert told == pytest.approx(float(learned.network.is_valid(draws).double().mean()), rel=0.25)


@pytest.mark.parametrize(
    ("fix", "said"),
    [("dog=1", "expected OBJECT=SCALE"), ("{name}=big", "expected a number"), ("{name}=90", "its range is")],
)
def test_what_cannot_be_fixed_is_told_and_nothing_is_written(run: Path, tmp_path: Path, capsys, fix: str, said: str):
    name = open_run(run, Console(quiet=True)).learned.object_names[1]
    arguments = [str(run), "--out", str(tmp_path / "x.json"), "--fix", fix.format(name=name)]
    assert run_tool(sample_from_arguments, arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
