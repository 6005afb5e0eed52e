"""A benchmark says what is wrong with its options before it starts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from osn_gs.benchmarks.layer_stacks import boxes_in_a_room
from osn_gs.benchmarks.rasterize import RasterizeBenchmark, benchmark_rasterize
from osn_gs.benchmarks.scales import ScalesBenchmark, benchmark_scales
from osn_gs.errors import ConfigError

TOOL = Path(__file__).parents[1] / "tools" / "benchmark.py"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": 1}, "--objects: expected 2 to 62, got 1."),
        ({"objects": 300}, "--objects: expected 2 to 62, got 300."),
        ({"repeats": 0}, "--repeats: expected 1 or more, got 0."),
        ({"threads": 0}, "--threads: expected 1 or more, got 0."),
        ({"frames": 0}, "--frames: expected 1 or more, got 0."),
        ({"size": (320, 0)}, "--size: expected a width and a height of 1 or more, got 320 0."),
        ({"tolerance": -0.1}, "--tolerance: expected a share of the pixels from 0 to below 1, got -0.1."),
    ],
)
def test_scales_refuses_what_it_cannot_run(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        benchmark_scales(ScalesBenchmark(**options), Console())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaussians": 0}, "--gaussians: expected 1 or more, got 0."),
        ({"repeats": -1}, "--repeats: expected 1 or more, got -1."),
        ({"sizes": ((320, 240), (0, 10))}, "--sizes: expected a width and a height of 1 or more, got 0 10."),
    ],
)
def test_rasterize_refuses_what_it_cannot_run(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        benchmark_rasterize(RasterizeBenchmark(**options), Console())


def test_a_box_that_no_frame_shows_is_named() -> None:
    with pytest.raises(ConfigError, match=r"box \d+ is hidden in every frame; take fewer objects"):
        boxes_in_a_room(40, 1, 12, 16, torch.Generator().manual_seed(0))


def test_the_tool_ends_with_one_line_and_code_2() -> None:
    finished = subprocess.run(
        [sys.executable, str(TOOL), "scales", "--repeats", "0"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "error: --repeats: expected 1 or more, got 0.\n"


def test_scales_measures_what_it_promises() -> None:
    options = ScalesBenchmark(objects=3, frames=2, size=(64, 48), vectors=100, samples=5, repeats=1)
    figures = benchmark_scales(options, Console(quiet=True))
    assert figures["counts_differ_from_compositing"] == 0
    assert 0 < figures["valid_share_of_box"] < 1
    assert figures["label_s"] > 0
    assert figures["sample_s"] > 0
