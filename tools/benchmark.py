"""Measure the parts that must be fast: `python tools/benchmark.py rasterize`."""

import tyro
from rich.console import Console

from osn_gs.benchmarks.rasterize import RasterizeBenchmark, benchmark_rasterize

if __name__ == "__main__":
    commands = {"rasterize": RasterizeBenchmark}
    options = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    benchmark_rasterize(options, Console())
