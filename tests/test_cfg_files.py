"""The shipped configurations: differences from the defaults alone, and the facts of the released code's 15 scenes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from osn_gs.config import config_to_yaml, load_config, parse_config
from osn_gs.run.command import EXIT_BAD_INPUT, run_tool
from osn_gs.run.train import train_from_arguments
from osn_gs.training.config import TrainConfig

CFG = Path(__file__).parents[1] / "cfg"
FILES = {path.relative_to(CFG).with_suffix("").as_posix(): path for path in sorted(CFG.rglob("*.yaml"))}


class SceneFacts(NamedTuple):
    """K, background included, and the label thresholds before and from iteration 3,000, the network's third round."""

    num_objects: int
    accuracy: tuple[float, float]
    top_k: tuple[float, float]
    preproc: str | None = None


SCENES = {
    "indoor/chessboard": SceneFacts(4, (0.97, 0.985), (0.03, 0.015)),
    "indoor/chessboard++": SceneFacts(9, (0.98, 0.99), (0.02, 0.01)),
    "indoor/darkroom": SceneFacts(4, (0.99, 0.99), (0.01, 0.01)),
    "indoor/dining": SceneFacts(5, (0.99, 0.99), (0.01, 0.01)),
    "indoor/factory": SceneFacts(4, (0.98, 0.99), (0.02, 0.01)),
    "multimotion/occlusionT": SceneFacts(3, (0.98, 0.99), (0.02, 0.01)),
    "multimotion/occlusionU": SceneFacts(3, (0.98, 0.99), (0.02, 0.01)),
    "multimotion/swingingT": SceneFacts(5, (0.99, 0.99), (0.01, 0.01)),
    "multimotion/swingingU": SceneFacts(5, (0.99, 0.99), (0.01, 0.01)),
    "dynamic_scene/Balloon2": SceneFacts(2, (0.98, 0.995), (0.02, 0.005)),
    "dynamic_scene/Skating": SceneFacts(2, (0.98, 0.99), (0.02, 0.01)),
    "dynamic_scene/Truck": SceneFacts(2, (0.95, 0.99), (0.05, 0.01)),
    "iphone/basketballs": SceneFacts(4, (0.99, 0.99), (0.01, 0.01), "sam_raft01"),
    "iphone/dragons": SceneFacts(4, (0.97, 0.99), (0.03, 0.01), "sam_raft01"),
    "kitti/0007": SceneFacts(3, (0.98, 0.99), (0.02, 0.01)),
}


def as_leaves(config: TrainConfig) -> dict[str, Any]:
    """Every option as YAML has it, under its dotted name."""
    return leaves(yaml.safe_load(config_to_yaml(config)))


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def test_every_scene_of_the_released_code_has_a_file_and_nothing_else_but_the_demo():
    assert set(FILES) == {"demo", *SCENES}


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_hold_only_what_differs_from_the_defaults(name: str):
    stated = leaves(yaml.safe_load(FILES[name].read_text()))
    loaded, default = as_leaves(load_config(TrainConfig, FILES[name])), as_leaves(TrainConfig())
    assert stated, "an empty file configures nothing"
    repeated = [key for key in stated if loaded[key] == default[key]]
    assert not repeated, f"{name} repeats defaults: {repeated}"
    assert FILES[name].read_text().startswith("# "), "the first line says what the file is for"


@pytest.mark.parametrize("name", SCENES)
def test_a_scenes_file_states_the_facts_of_the_released_code(name: str):
    config = parse_config(TrainConfig, ["--config", str(FILES[name])], "train")
    facts = SCENES[name]
    assert config.data == Path("data") / name
    assert (config.num_objects, config.preproc) == (facts.num_objects, facts.preproc)
    rules = [config.object_scales.rule(round_number) for round_number in range(1, config.schedule.last_round + 1)]
    later_rounds = len(rules) - 2
    assert [rule.threshold for rule in rules] == [facts.accuracy[0]] * 2 + [facts.accuracy[1]] * later_rounds
    assert [rule.least_share for rule in rules] == [facts.top_k[0]] * 2 + [facts.top_k[1]] * later_rounds


def test_our_label_rule_is_a_flag_away():
    arguments = ["--config", str(FILES["indoor/chessboard"]), "--object-scales.label-rule", "relative"]
    assert parse_config(TrainConfig, arguments, "train").object_scales.label_rule == "relative"


def test_a_scene_folder_with_another_number_of_objects_is_refused_in_one_line(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The demo has four objects, KITTI's sequence three."""
    tool = partial(train_from_arguments, demo_config=FILES["demo"])
    run = tmp_path / "run"
    arguments = ["--config", FILES["kitti/0007"], "--data", demo_folder, "--run", run, "--device", "cpu"]
    assert run_tool(tool, [str(argument) for argument in arguments]) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {demo_folder.resolve()}: expected 3 objects, background included")
    assert "it has 4; give the folder" in line
    assert "--num-objects 4" in line
    assert not run.exists(), "a run that could not start leaves nothing behind"
