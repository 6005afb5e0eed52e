"""Options: defaults, then YAML files, then flags; mistakes in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from osn_gs.config import config_to_yaml, load_config, parse_config
from osn_gs.errors import ConfigError
from osn_gs.training.config import ScheduleConfig, TrainConfig


def parse(*arguments: str) -> TrainConfig:
    return parse_config(TrainConfig, list(arguments), "train")


def test_later_files_win_over_earlier_ones_and_flags_over_all(tmp_path: Path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 1\nschedule: {rounds: 7, scene_steps: 70}\n")
    second.write_text("schedule: {scene_steps: 80}\n")
    config = parse("--config", str(first), str(second), "--seed", "3")
    assert (config.seed, config.schedule.rounds, config.schedule.scene_steps) == (3, 7, 80)
    assert config.schedule.network_steps == ScheduleConfig().network_steps


def test_a_configuration_written_as_yaml_reads_back_equal(tmp_path: Path):
    config = parse("--data", "some/scene", "--object-scales.tolerance", "1e-3", "--schedule.rounds", "2")
    path = tmp_path / "config.yml"
    path.write_text(config_to_yaml(config))
    assert load_config(TrainConfig, path) == config


def test_yaml_numbers_with_an_exponent_are_numbers(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("object_scales: {tolerance: 1e-3}\n")  # YAML 1.1 reads this as a string
    assert parse("--config", str(path)).object_scales.tolerance == 1e-3


@pytest.mark.parametrize(
    ("written", "expected"), [("[0.98, 99e-2]", (0.98, 0.99)), ("[1]", (1.0,)), ("0.98", (0.98,)), ("98e-2", (0.98,))]
)
def test_a_list_of_any_length_may_be_one_value(tmp_path: Path, written: str, expected: tuple[float, ...]):
    path = tmp_path / "c.yaml"
    path.write_text(f"object_scales: {{accuracy: {written}}}\n")
    assert parse("--config", str(path)).object_scales.accuracy == expected


def test_values_by_round_follow_their_flag():
    config = parse("--object-scales.accuracy", "0.98", "0.99", "--object-scales.top-k", "0.02", "--seed", "3")
    assert (config.object_scales.accuracy, config.object_scales.top_k, config.seed) == ((0.98, 0.99), (0.02,), 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schedul: {rounds: 3}", "schedul: unknown option in a configuration file; did you mean schedule?"),
        ("schedule: {round: 3}", "schedule.round: unknown option in a configuration file; did you mean rounds?"),
        ("seed: many", "seed: expected int, got 'many'"),
        ("poses: guess", "poses: expected one of 'auto', 'preproc', 'truth', got 'guess'"),
        ("schedule: 3", "schedule: expected ScheduleConfig, got 3"),
        ("- 1", "expected a mapping of options at the top level, got list"),
        ("a: [", "not valid YAML"),
        ("near: 0", "near: expected a depth above 0, got 0"),
        ("{near: 9, far: 8}", "near and far: expected 0 < near < far, got 9 and 8"),
        ("num_objects: 1", "num_objects: expected at least 2, got 1"),
        ("checkpoint_every: 0", "checkpoint_every: expected at least 1, got 0"),
        ("schedule: {bootstrap_steps: -1}", "bootstrap_steps: expected at least 0, got -1"),
        ("schedule: {bootstrap_steps: 0, rounds: 0, final_steps: 0}", "schedule: no steps on the Gaussians"),
        ("losses: {configurations_per_step: 0}", "configurations_per_step: expected at least 1, got 0"),
        ("gaussians: {sh_degree: 5}", "gaussians.sh_degree: expected one of 0, 1, 2, 3, got 5"),
        ("evaluate_configurations: 500", "raise object_scales.samples too"),
        ("object_scales: {accuracy: []}", "accuracy: expected one value or more, each above 0 and at most 1, got []"),
        ("object_scales: {top_k: [0.02, 0]}", "each above 0 and at most 1, got [0.02, 0.0]"),
        ("object_scales: {accuracy: [98, 99]}", "accuracy: expected one value or more, each above 0 and at most 1"),
        ("object_scales: {accuracy: true}", "object_scales.accuracy[0]: expected float, got True"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(path))
    assert expected in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read"):
        parse("--config", str(tmp_path / "nowhere.yaml"))


def test_an_unknown_flag_exits_with_code_2():
    with pytest.raises(SystemExit) as caught:
        parse("--sede", "3")
    assert caught.value.code == 2
