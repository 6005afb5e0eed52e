"""Commands in the README are ones that the tools take; the short ones are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro
from short_run import write_short_run

from osn_gs.benchmarks.command import COMMANDS
from osn_gs.config import parse_config
from osn_gs.preprocess.pipeline import PrepareConfig
from osn_gs.run.command import run_tool
from osn_gs.run.evaluate import EvaluateConfig, evaluate_from_arguments
from osn_gs.run.render import RenderConfig, render_from_arguments
from osn_gs.run.sample import SampleConfig, sample_from_arguments
from osn_gs.run.segment import SegmentConfig
from osn_gs.run.view import ViewConfig
from osn_gs.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
OPTIONS = {
    "evaluate": EvaluateConfig,
    "prepare": PrepareConfig,
    "render": RenderConfig,
    "sample": SampleConfig,
    "segment": SegmentConfig,
    "train": TrainConfig,
    "view": ViewConfig,
}
RUN_HERE = {"sample": sample_from_arguments, "render": render_from_arguments, "evaluate": evaluate_from_arguments}
QUICKER = {"render": ["--seconds", "0.1", "--height", "48"], "sample": [], "evaluate": []}


def commands() -> list[list[str]]:
    """Every call of a tool in the README, in blocks and in running text, as its words after `python`."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for part in block.splitlines() for line in part.split("&&")]
    lines += [
        " ".join(span.split())
        for span in re.findall(r"`(python tools/[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [found[1:] for found in words if found[:1] == ["python"] and found[1].startswith("tools/")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_has_options_its_tool_takes(command: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    tool = Path(command[0])
    assert tool.is_file()
    arguments = [word for word in command[1:] if word != "..."]
    if tool.stem == "benchmark":
        if arguments:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments)
        return
    arguments = [word for word in arguments if word not in ("my.yaml", "--config") or "cfg/" in " ".join(arguments)]
    if "--help" not in arguments:
        parse_config(OPTIONS[tool.stem], arguments, str(tool))


@pytest.fixture(scope="module")
def demo_run(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the demo, where the README has runs/demo."""
    return write_short_run(tmp_path_factory.mktemp("readme") / "runs" / "demo", demo_folder, 80, 500)


def test_commands_on_the_demos_run_work_in_their_order(demo_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demo_run.parents[1])
    calls = [command for command in commands() if command[1:2] == ["runs/demo"] and Path(command[0]).stem in RUN_HERE]
    assert {Path(command[0]).stem for command in calls} == set(RUN_HERE)
    for command in calls:
        tool = Path(command[0]).stem
        assert run_tool(RUN_HERE[tool], [*command[1:], *QUICKER[tool]]) == 0, command
    written = {str(path.relative_to(demo_run)) for path in demo_run.rglob("*") if path.is_file()}
    assert {"stats/eval_test.json", "renders/path/side_by_side.mp4", "renders/path/side_by_side.png"} <= written
    assert "configurations_engine_0.5.json" in written
