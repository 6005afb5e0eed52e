"""`tools/benchmark.py`: from options to printed figures."""

from __future__ import annotations

from collections.abc import Sequence

import tyro
from rich.console import Console

from osn_gs.benchmarks.rasterize import RasterizeBenchmark, benchmark_rasterize
from osn_gs.benchmarks.scales import ScalesBenchmark, benchmark_scales

PROGRAM = "python tools/benchmark.py"
DESCRIPTION = "Measure the parts that must be fast: the rasterizer, or the scale oracle and its sampler."


def benchmark_from_arguments(arguments: Sequence[str]) -> int:
    """Parse the command line and run one benchmark; the exit code of the tool."""
    commands = {"rasterize": RasterizeBenchmark, "scales": ScalesBenchmark}
    options = tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog=PROGRAM, description=DESCRIPTION)
    if isinstance(options, RasterizeBenchmark):
        benchmark_rasterize(options, Console())
    else:
        benchmark_scales(options, Console())
    return 0
