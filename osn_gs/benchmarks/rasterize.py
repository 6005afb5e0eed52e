"""How fast the CPU rasterizers are, and what many configurations of one view cost."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from osn_gs.benchmarks.options import check_counts, check_image_size
from osn_gs.files import write_json_atomic
from osn_gs.rendering.layers import CompositedLayers, composite_layers, layer_depth_stds
from osn_gs.rendering.rasterize import rasterize
from osn_gs.threads import set_num_threads

NUM_OBJECTS = 6
NUM_CONFIGURATIONS = 16


@dataclass(frozen=True)
class RasterizeBenchmark:
    """Time the Numba rasterizer against the torch reference, and many configurations against one.

    Prints medians of wall-clock milliseconds; both back ends run in turns in the same process.
    """

    gaussians: int = 20_000
    """Gaussians in the cloud, all in view."""
    sizes: tuple[tuple[int, int], ...] = ((320, 240), (640, 480))
    """Image sizes, width and height."""
    repeats: int = 5
    """Timed runs of each row; one more goes before and is not counted."""
    threads: int = 1
    """Threads of either back end. One thread gives the steadier ratios on a busy machine."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class _Cloud:
    """Gaussians in front of the identity camera, each of one object."""

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    scales: Float[Tensor, "n 3"]
    opacities: Float[Tensor, "n"]
    colors: Float[Tensor, "n 3"]
    object_index: Int[Tensor, "n"]
    K: Float[Tensor, "3 3"]
    width: int
    height: int


def benchmark_rasterize(options: RasterizeBenchmark, console: Console) -> dict:
    """Run all rows, print two tables and return the figures; raises `ConfigError` for options that cannot be."""
    check_counts(gaussians=options.gaussians, repeats=options.repeats, threads=options.threads)
    for size in options.sizes:
        check_image_size("sizes", size)
    torch.set_num_threads(options.threads)
    set_num_threads(options.threads)
    speeds, configurations = [], []
    for width, height in options.sizes:
        console.print(f"{width}x{height} ...", highlight=False)
        speeds += _time_back_ends(_random_cloud(options.gaussians, width, height), options.repeats)
        configurations.append(_time_configurations(_object_cloud(options.gaussians, width, height), options.repeats))
    console.print(_speed_table(speeds, options), _configurations_table(configurations))
    figures = {
        "options": {**asdict(options), "json": str(options.json) if options.json else None},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "back_ends": speeds,
        "configurations": configurations,
    }
    if options.json:
        write_json_atomic(options.json, figures)
    return figures


def _time_back_ends(cloud: _Cloud, repeats: int) -> list[dict]:
    """Milliseconds of both back ends, forward and forward + backward, RGB and expected depth."""
    leaves = [
        t.clone().requires_grad_() for t in (cloud.means, cloud.quats, cloud.scales, cloud.opacities, cloud.colors)
    ]

    def render(backend: str) -> Tensor:
        image, alphas, _ = rasterize(
            *leaves, _identity_camera(), cloud.K[None], cloud.width, cloud.height, render_mode="RGB+ED", backend=backend
        )
        return image.sum() + alphas.sum()

    def forward(backend: str) -> None:
        with torch.no_grad():
            render(backend)

    rows = []
    for name, run in (("forward", forward), ("forward + backward", lambda backend: render(backend).backward())):
        numba, reference = _medians([lambda run=run: run("numba"), lambda run=run: run("torch")], repeats)
        row = {"size": f"{cloud.width}x{cloud.height}", "pass": name, "numba_ms": numba, "torch_ms": reference}
        rows.append(row | {"ratio": reference / numba})
    return rows


@torch.no_grad()
def _time_configurations(cloud: _Cloud, repeats: int) -> dict:
    """Milliseconds of one exact view and of N layered ones, and how far the layered ones are from exact."""
    generator = torch.Generator().manual_seed(2)
    object_scales = torch.exp(torch.rand(NUM_CONFIGURATIONS, NUM_OBJECTS, generator=generator) * 1.2 - 0.6)
    object_scales[:, 0] = 1
    objects = [torch.nonzero(cloud.object_index == k)[:, 0] for k in range(NUM_OBJECTS)]
    one, many = _medians(
        [lambda: _exact_view(cloud, object_scales[0]), lambda: _layered_views(cloud, objects, object_scales)], repeats
    )
    layered = _layered_views(cloud, objects, object_scales, find_interleaved=True)
    exact = torch.stack([_exact_view(cloud, scales)[..., :3] for scales in object_scales])
    errors = (layered.features - exact).abs().amax(-1)
    return {
        "size": f"{cloud.width}x{cloud.height}",
        "one_exact_ms": one,
        "layered_ms": many,
        "ratio": many / one,
        "interleaved_share": float(layered.interleaved.float().mean()),
        "mean_error": float(errors.mean()),
        "mean_error_elsewhere": float(errors[~layered.interleaved].mean()),
        "share_above_0.01_elsewhere": float((errors[~layered.interleaved] > 0.01).float().mean()),
    }


def _exact_view(cloud: _Cloud, object_scales: Float[Tensor, "k"]) -> Float[Tensor, "h w 4"]:
    """All objects in one cloud, scaled about the camera centre, which is the origin."""
    scales = object_scales[cloud.object_index, None]
    image, _, _ = rasterize(
        scales * cloud.means,
        cloud.quats,
        scales * cloud.scales,
        cloud.opacities,
        cloud.colors,
        _identity_camera(),
        cloud.K[None],
        cloud.width,
        cloud.height,
        render_mode="RGB+ED",
    )
    return image[0]


def _layered_views(
    cloud: _Cloud, objects: list[Tensor], object_scales: Float[Tensor, "m k"], find_interleaved: bool = False
) -> CompositedLayers:
    """Each object rendered once, then composited under every vector of object scales."""
    images, alphas, stds = [], [], []
    for members in objects:
        means = cloud.means[members]
        image, alpha, _ = rasterize(
            means,
            cloud.quats[members],
            cloud.scales[members],
            cloud.opacities[members],
            cloud.colors[members],
            _identity_camera(),
            cloud.K[None],
            cloud.width,
            cloud.height,
            render_mode="RGB+ED",
            extra_features=means[:, 2:].square() if find_interleaved else None,
        )
        images.append(image[0])
        alphas.append(alpha[0, ..., 0])
        if find_interleaved:
            squared_depths = image[0, ..., 3] / alphas[-1].clamp_min(1e-10)
            stds.append(layer_depth_stds(image[0, ..., -1], squared_depths))
    images = torch.stack(images)
    depth_stds = torch.stack(stds) if find_interleaved else None
    return composite_layers(images[..., :3], torch.stack(alphas), images[..., -1], object_scales, depth_stds)


def _identity_camera() -> Float[Tensor, "1 4 4"]:
    return torch.eye(4)[None]


def _random_cloud(count: int, width: int, height: int) -> _Cloud:
    """Gaussians of mixed sizes and opacities, spread evenly over the image between depth 1.5 and 8."""
    generator = torch.Generator().manual_seed(0)
    u, v, depths = torch.rand(3, count, generator=generator)
    return _cloud_at(u * width, v * height, 1.5 + 6.5 * depths, torch.zeros(count).long(), width, height, generator)


def _object_cloud(count: int, width: int, height: int) -> _Cloud:
    """A far wall and five hollow balls at different depths that overlap one another in the image."""
    generator = torch.Generator().manual_seed(1)
    object_index = torch.randint(0, NUM_OBJECTS, (count,), generator=generator)
    u, v, depths = torch.rand(3, count, generator=generator)
    u, v, depths = u * width, v * height, 7 + 0.5 * depths
    surface = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    for k in range(1, NUM_OBJECTS):
        ball = object_index == k
        distance = 2.0 + 0.8 * k
        points = 0.6 * surface[ball] + torch.tensor([0, 0, distance])
        depths[ball] = points[:, 2]
        focal = 0.9 * width
        u[ball] = focal * points[:, 0] / points[:, 2] + width * (0.05 + 0.9 * ((0.61 * k) % 1))
        v[ball] = focal * points[:, 1] / points[:, 2] + height * (0.15 + 0.7 * ((0.37 * k) % 1))
    return _cloud_at(u, v, depths, object_index, width, height, generator)


def _cloud_at(u, v, depths, object_index, width, height, generator) -> _Cloud:
    """Random Gaussians whose centres project to (u, v)."""
    count, focal = len(u), 0.9 * width
    means = torch.stack([(u - width / 2) / focal * depths, (v - height / 2) / focal * depths, depths], dim=-1)
    return _Cloud(
        means=means,
        quats=torch.randn(count, 4, generator=generator),
        scales=torch.exp(math.log(0.03) + 0.5 * torch.randn(count, 3, generator=generator)),
        opacities=torch.sigmoid(1.5 * torch.randn(count, generator=generator)),
        colors=torch.rand(count, 3, generator=generator),
        object_index=object_index,
        K=torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
        width=width,
        height=height,
    )


def _medians(runs: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each of `runs`, taken in turns so that a busy moment meets all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, own_times in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if repeat > 0:  # the first run compiles
                own_times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own_times) for own_times in times]


def _speed_table(rows: list[dict], options: RasterizeBenchmark) -> Table:
    title = f"{options.gaussians:,} Gaussians, RGB + expected depth, {options.threads} thread(s), ms"
    table = Table("size", "pass", title=title)
    for column in ("Numba", "torch", "torch / Numba"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{row['numba_ms']:.0f}", f"{row['torch_ms']:.0f}", f"{row['ratio']:.1f}x")
        table.add_row(row["size"], row["pass"], *numbers)
    return table


def _configurations_table(rows: list[dict]) -> Table:
    title = f"{NUM_CONFIGURATIONS} configurations of one view, {NUM_OBJECTS} objects, Numba, forward, ms"
    table = Table("size", title=title, caption="Errors: largest channel against the exact view, colours in [0, 1].")
    columns = ("one, exact", "16, layered", "layered / one", "interleaved pixels", "mean error", "mean error elsewhere")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["size"],
            f"{row['one_exact_ms']:.0f}",
            f"{row['layered_ms']:.0f}",
            f"{row['ratio']:.1f}x",
            f"{100 * row['interleaved_share']:.1f} %",
            f"{row['mean_error']:.1e}",
            f"{row['mean_error_elsewhere']:.1e}",
        )
    return table
