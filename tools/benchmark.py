"""Measure the parts that must be fast: `python tools/benchmark.py rasterize` or `scales`."""

import tyro
from rich.console import Console

from osn_gs.benchmarks.rasterize import RasterizeBenchmark, benchmark_rasterize
from osn_gs.benchmarks.scales import ScalesBenchmark, benchmark_scales

if __name__ == "__main__":
    commands = {"rasterize": RasterizeBenchmark, "scales": ScalesBenchmark}
    options = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    if isinstance(options, RasterizeBenchmark):
        benchmark_rasterize(options, Console())
    else:
        benchmark_scales(options, Console())
