"""`tools/render.py`: pictures and videos of a run's configurations."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor

from osn_gs.config import parse_config
from osn_gs.data.scene_data import HeldOutView
from osn_gs.errors import ConfigError
from osn_gs.evaluation.views import render_held_out
from osn_gs.export.camera_path import read_camera_path
from osn_gs.export.configurations import Configuration
from osn_gs.export.previews import color_depth, color_ids, depth_range, to_uint8, write_png
from osn_gs.export.renderings import Colouring, World, fly_through
from osn_gs.export.video import write_video
from osn_gs.files import write_bytes_atomic
from osn_gs.geometry.camera_path import CameraPath, Keyframe, interpolate_keyframes, spiral_path, swinging_path
from osn_gs.run.open_run import choose_device, newest_run, open_run, read_run_configurations, split_views
from osn_gs.scene.render import RenderedView
from osn_gs.scene.scene import Scene

PROGRAM = "python tools/render.py"
SWING, SPIRAL, INTERPOLATE = "swing", "spiral", "interpolate"
MIDDLE_PATHS = {SWING: swinging_path, SPIRAL: spiral_path}  # about the training camera of the middle frame
T = TypeVar("T")


@dataclass(frozen=True)
class RenderConfig:
    """Render a run's configurations: the views of a split as pictures, or a camera path as a video.

    Pictures of a view: colour (.png), z-depth in scene units (.npy and colour map), object ids (.npy and palette).
    """

    run: tyro.conf.Positional[Path | None] = None
    """Run folder of tools/train.py; by default the newest below runs/."""
    split: Literal["path", "train", "test", "stereo"] = "path"
    """Views of the scene folder, or a camera path of your own."""
    configuration: str = "0"
    """Which of the configurations: its number or name, several with commas between, or all."""
    configurations: Path | None = None
    """File of configurations from tools/sample.py, in place of RUN/configurations.json."""
    path: str = SWING
    """Camera path: swing or spiral (about the training camera), interpolate (smoothly along the training cameras), or a
    file in nerfstudio's format, as the viewer exports it."""
    side_by_side: bool = False
    """One video with all chosen configurations in it, each under its name."""
    colouring: Colouring = "colour"
    """What a video shows."""
    seconds: float = 6.0
    """Length of a video, where no file says it."""
    fps: float = 24.0
    """Pictures a second, where no file says it."""
    height: int = 480
    """Height of each picture of a video, where no file says it."""
    still: float = 0.25
    """The moment of a video that is also written as a picture, from 0 (its begin) to 1 (its end); at a quarter a swing
    is farthest out."""
    out: Path | None = None
    """Folder for what is rendered; by default RUN/renders."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.fps > 0 and self.height >= 16):
            raise ConfigError(
                f"seconds, fps and height: expected more than 0, 0 and 15, got {self.seconds:g}, {self.fps:g} and "
                f"{self.height}."
            )
        if self.split != "path" and (self.side_by_side, self.path, self.colouring) != (False, SWING, "colour"):
            raise ConfigError(
                f"--split {self.split}: side-by-side, path and colouring are of videos; leave them out for pictures of "
                "a split's views, which come in all colourings."
            )
        if not 0 <= self.still <= 1:
            raise ConfigError(f"still: expected a moment from 0 to 1, got {self.still:g}.")


def render_from_arguments(arguments: list[str]) -> int:
    """Parse the command line, render and write; the exit code of the tool."""
    config = parse_config(RenderConfig, arguments, PROGRAM)
    console = Console(soft_wrap=True, highlight=False)
    torch.set_num_threads(1)
    device = choose_device(config.device)
    run = open_run(config.run or newest_run(), console)
    file, available = run.folder.configurations, run.configurations
    if config.configurations is not None:
        file = config.configurations
        available = read_run_configurations(file, run.trained.scene).configurations
    configurations = choose_configurations(available, config.configuration, file)
    scene = run.trained.scene.to(device)
    folder = (config.out or run.folder.root / "renders") / config.split
    with Progress(console=console, transient=True) as progress:
        if config.split == "path":
            written = _render_videos(scene, configurations, config, folder, progress)
        else:
            written = _render_views(scene, split_views(run, config.split), configurations, folder, progress)
    for path in written:
        console.print(f"Written: {escape(str(path))}")
    return 0


def choose_configurations(available: tuple[Configuration, ...], chosen: str, file: Path) -> tuple[Configuration, ...]:
    """Configurations of a file by number or name, comma-separated, or all; raises ConfigError for one not there."""
    if not available:
        raise ConfigError(
            f"{file}: no configurations here; let the training end, or draw some with python tools/sample.py."
        )
    if chosen == "all":
        return available
    by_name = {str(index): sample for index, sample in enumerate(available)} | {s.name: s for s in available}
    picked = []
    for entry in chosen.split(","):
        if entry.strip() not in by_name:
            raise ConfigError(
                f"--configuration {entry}: expected a number from 0 to {len(available) - 1}, a name such as "
                f"{available[0].name}, or all."
            )
        picked.append(by_name[entry.strip()])
    return tuple(picked)


def camera_path(scene: Scene, world: World, config: RenderConfig) -> CameraPath:
    """The path that the options ask for; the scene's frames run once while it is flown.

    Swing and spiral turn about the moving objects as they stand in `world`.
    """
    if config.path not in (*MIDDLE_PATHS, INTERPOLATE):
        return read_camera_path(Path(config.path), scene.num_frames)
    num_views = max(round(config.seconds * config.fps), 2)
    last = scene.num_frames - 1
    width = round(config.height * scene.width / scene.height)
    fov_y = 2 * math.atan(scene.height / (2 * float(scene.intrinsics[1, 1])))
    if config.path == INTERPOLATE:
        keyframes = [Keyframe(scene.cam_from_world(t), fov_y, t) for t in range(scene.num_frames)]
        return interpolate_keyframes(keyframes, num_views, fps=config.fps, width=width, height=config.height)
    times = torch.linspace(0, last, num_views)
    middle = scene.cam_from_world(scene.num_frames // 2)
    cameras = MIDDLE_PATHS[config.path](middle, _objects_distance(scene, world), num_views)
    return CameraPath(cameras, torch.full_like(times, fov_y), times, config.fps, width, config.height)


@torch.no_grad()
def _objects_distance(scene: Scene, world: World) -> float:
    """How far the moving objects are in a world, the median over objects and frames: what a swing turns about."""
    depths = []
    for group, object_scale in zip(scene.objects[1:], world.object_scales[1:], strict=True):
        middle = group.gaussians.means.quantile(0.5, dim=0)
        in_camera = group.cam_from_obj[:, :3, :3] @ middle + group.cam_from_obj[:, :3, 3]
        depths.append(object_scale * in_camera[group.visible, 2])
    return float(torch.cat(depths).median())


def _render_videos(
    scene: Scene, configurations: tuple[Configuration, ...], config: RenderConfig, folder: Path, progress: Progress
) -> list[Path]:
    worlds = [World(sample.name, sample.object_scales) for sample in configurations]
    groups = {"side_by_side": worlds} if config.side_by_side else {world.name: [world] for world in worlds}
    path = camera_path(scene, worlds[0], config)
    written = []
    for name, shown in groups.items():
        target = folder / f"{name}.mp4"
        pictures = _with_bar(fly_through(scene, shown, path, config.colouring), progress, name, len(path.times))
        kept = round(config.still * (len(path.times) - 1))
        write_video(target, _keep_still(pictures, kept, target.with_suffix(".png")), path.fps)
        written += [target, target.with_suffix(".png")]
    return written


def _keep_still(
    pictures: Iterable[UInt8[Tensor, "h w 3"]], kept: int, target: Path
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """The pictures, of which number `kept` is also written to a file of its own."""
    for index, picture in enumerate(pictures):
        if index == kept:
            write_png(target, picture)
        yield picture


@torch.no_grad()
def _render_views(
    scene: Scene,
    views: tuple[HeldOutView, ...],
    configurations: tuple[Configuration, ...],
    folder: Path,
    progress: Progress,
) -> list[Path]:
    """The views under every configuration, by their own cameras."""
    written = []
    for sample in configurations:
        target = folder / sample.name
        scales = sample.scales_like(scene.intrinsics)
        for view in _with_bar(views, progress, sample.name, len(views)):
            _write_picture(target, Path(view.name).name, render_held_out(scene, view, scales))
        written.append(target)
    return written


def _write_picture(folder: Path, name: str, picture: RenderedView) -> None:
    write_png(folder / "rgb" / f"{name}.png", to_uint8(picture.rgb))
    write_png(folder / "depth" / f"{name}.png", color_depth(picture.depth, *depth_range(picture.depth)))
    write_png(folder / "object_ids" / f"{name}.png", color_ids(picture.object_ids))
    _write_npy(folder / "depth" / f"{name}.npy", picture.depth.cpu().numpy())
    _write_npy(folder / "object_ids" / f"{name}.npy", picture.object_ids.to(torch.uint8).cpu().numpy())


def _write_npy(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_bytes_atomic(path, buffer.getvalue())


def _with_bar(items: Iterable[T], progress: Progress, name: str, total: int) -> Iterator[T]:
    task = progress.add_task(name, total=total)
    for item in items:
        yield item
        progress.advance(task)
