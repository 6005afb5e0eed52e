"""How fast the viewer answers and draws, and what it costs a training to be watched.

A slider's way is taken apart: the page is told to press a key on it, the server's state changes, all messages for one
client are made, the browser draws (`headless_browser.PROBE` says when a frame counts). Browsers draw in software here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import viser
from rich.console import Console
from rich.table import Table

from osn_gs.benchmarks.headless_browser import missing_browser, probed_page
from osn_gs.benchmarks.options import check_counts
from osn_gs.benchmarks.page_client import PageClient
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_layout import load_scene
from osn_gs.errors import ConfigError
from osn_gs.export.renderings import Camera, World
from osn_gs.files import write_json_atomic
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.run.live_view import LiveView
from osn_gs.run.open_run import open_run
from osn_gs.run.view import viewed_run
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training.config import TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer
from osn_gs.training.start import initial_scene
from osn_gs.viewer.server_view import Job, draw
from osn_gs.viewer.snapshot import take_snapshot
from osn_gs.viewer.viewer import Viewed, Viewer
from osn_gs.viewer.worlds import Worlds

PORT = 8860  # the first that is tried
WINDOW = (800, 600)
CPU_PICTURE, CUDA_PICTURE = (320, 180), (1280, 720)
FIRST_OBJECT_SLIDER = 2  # of the page's: before it come the frame's and the speed's
SPLAT_SIZE = 0.4  # deviation of a splat, where the distance to the next is 1
ORBIT_RATE = 30.0  # positions a second, of the camera that keeps a browser drawing
WARM_UP_STEPS = 30  # of a training, before it is timed


@dataclass(frozen=True)
class ViewerBenchmark:
    """Time the viewer: a slider's way to the picture, splats and pictures a second, the cost of watching a training.

    Prints medians. Rows of a browser are left out, with the reason, where Chromium or playwright is missing.
    """

    run: Path | None = None
    """A run folder to look at, in place of a ball before a wall."""
    splats: tuple[int, ...] = (1_000, 5_000, 20_000)
    """Splats of ball and wall, one row of figures each."""
    moves: int = 15
    """Slider moves of each row."""
    seconds: float = 6.0
    """How long frames are counted for each row, and each stretch of the training is."""
    stretches: int = 5
    """Stretches of a training with someone watching, and as many without; 0 leaves the training out."""
    json: Path | None = None
    """Also write the figures to this file."""


def benchmark_viewer(options: ViewerBenchmark, console: Console) -> dict:
    """Measure all rows, print tables and return the figures; raises `ConfigError` for options that cannot be."""
    check_counts(moves=options.moves)
    check_counts(least=0, stretches=options.stretches)
    check_counts(least=100, splats=min(options.splats, default=0))
    if not options.seconds > 0:
        raise ConfigError(f"--seconds: expected more than 0, got {options.seconds:g}.")
    torch.set_num_threads(1)  # as tools/view.py: the rasterizer has its own threads
    no_browser = missing_browser()
    rows = []
    for viewed in _scenes(options, console):
        console.print(f"{viewed.name} ...", highlight=False)
        rows.append(_measure(viewed, options, no_browser is None))
    watched = _watched_training(options) if options.stretches else None
    console.print(_table(rows))
    if no_browser is not None:
        console.print(f"Without a browser: {no_browser}.")
    if not torch.cuda.is_available():
        console.print("Without pictures drawn on CUDA: no CUDA device was found.")
    if watched is not None:
        console.print(_training_table(watched))
    figures = {
        "options": {**asdict(options), "run": str(options.run), "json": str(options.json)},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "scenes": rows,
        "training": watched,
    }
    if options.json:
        write_json_atomic(options.json, figures)
    return figures


def _scenes(options: ViewerBenchmark, console: Console) -> Iterator[Viewed]:
    if options.run is not None:
        yield viewed_run(open_run(options.run, console), torch.device("cpu"))
        return
    for num_splats in options.splats:
        yield _ball_before_wall(num_splats)


def _ball_before_wall(num_splats: int) -> Viewed:
    """A ball that crosses the view of a camera that moves along a wall; nobody has learned which scales are valid."""
    frames = 24
    generator = torch.Generator().manual_seed(0)
    in_ball = num_splats // 4
    wall = torch.rand(num_splats - in_ball, 3, generator=generator) * torch.tensor([9.0, 7.0, 0.1])
    wall += torch.tensor([-4.5, -3.5, 5.0])
    ball = torch.nn.functional.normalize(torch.randn(in_ball, 3, generator=generator), dim=1) * 0.6
    ranges = torch.tensor([[1.0, 1.0], [0.5, 1.5]])
    poses = torch.eye(4).repeat(2, frames, 1, 1)
    poses[0, :, 0, 3] = torch.linspace(0.3, -0.3, frames)
    poses[1, :, 0, 3] = torch.linspace(1.0, -1.0, frames)
    poses[1, :, 2, 3] = 4.0
    visible = torch.ones(frames, dtype=torch.bool)
    scene = Scene(
        [
            ObjectGroup("background", _splats(wall, 9.0 * 7.0, generator), poses[0], visible),
            ObjectGroup("ball", _splats(ball, 4 * math.pi * 0.6**2, generator), poses[1], visible),
        ],
        torch.tensor([[300.0, 0, 160.0], [0, 300.0, 90.0], [0, 0, 1]]),
        *CPU_PICTURE,
        ranges,
        near=1.0,
        far=8.0,
    )
    worlds = Worlds(scene.object_names, ranges, ObjectScaleNetwork(ranges, generator), None, None, ())
    return Viewed("ball before a wall", scene, take_snapshot(scene), worlds)


def _splats(points: torch.Tensor, area: float, generator: torch.Generator) -> ObjectGaussians:
    """Opaque splats of any colour that together cover an area, however many there are."""
    gaussians = ObjectGaussians.from_points(points, torch.rand(len(points), 3, generator=generator), sh_degree=0)
    with torch.no_grad():
        gaussians.params["opacities"].fill_(3.0)
        gaussians.params["scales"].fill_(math.log(SPLAT_SIZE * math.sqrt(area / len(points))))
    return gaussians


def _measure(viewed: Viewed, options: ViewerBenchmark, in_browser: bool) -> dict:
    server = viser.ViserServer(host="127.0.0.1", port=PORT, verbose=False)
    viewer = Viewer(server, viewed)
    try:
        row = {"name": viewed.name, "splats": viewed.snapshot.num_splats}
        row |= _without_browser(viewer, server.get_port(), options.moves)
        if in_browser:
            row |= _in_browser(viewer, server.get_port(), options)
    finally:
        viewer.close()
        server.stop()
    row["pictures_per_s_cpu"] = _pictures_per_second(viewed.scene, *CPU_PICTURE, options.seconds)
    if torch.cuda.is_available():
        row["pictures_per_s_cuda"] = _pictures_per_second(viewed.scene.to("cuda"), *CUDA_PICTURE, options.seconds)
    return row


def _without_browser(viewer: Viewer, port: int, moves: int) -> dict:
    """Milliseconds of what the server does for one slider move, and until a client has its messages."""
    client = PageClient(port)
    client.wait_for_page()
    _wait(lambda: len(viewer.sessions) == 1)
    names = viewer.viewed.scene.object_names
    own, answered = [], []
    for move in range(moves):
        world = _moved_world(viewer, 0.01 * (move + 1))
        started = time.perf_counter()
        viewer.shared.change(world=world, choice=None)
        own.append(time.perf_counter() - started)
        time.sleep(0.1)
        list(client.messages(0.0))
        started = time.perf_counter()
        client.set(names[1], -0.02 * (move + 1))
        client.wait_for(lambda message: message["type"] == "SetPositionMessage")
        answered.append(time.perf_counter() - started)
    client.close()
    _wait(lambda: not viewer.sessions)
    return {"server_ms": 1e3 * statistics.median(own), "round_trip_ms": 1e3 * statistics.median(answered)}


def _moved_world(viewer: Viewer, power: float) -> World:
    """The first object's scale at a power of two."""
    scales = list(viewer.shared.state.world.object_scales)
    scales[1] = 2.0**power
    return World("moved", tuple(scales))


def _in_browser(viewer: Viewer, port: int, options: ViewerBenchmark) -> dict:
    """Milliseconds from a key press on a slider to state and frame, and frames a second while the camera flies."""
    changes: list[float] = []
    listener = lambda: changes.append(time.time())  # noqa: E731  the same object is taken away again
    with probed_page(f"http://127.0.0.1:{port}", *WINDOW) as page:
        _wait(lambda: len(viewer.sessions) == 1)
        (session,) = viewer.sessions.values()
        page.settle()
        viewer.shared.listen(listener)
        presses, to_state = [], []
        for move in range(options.moves):
            changes.clear()
            presses.append(page.press(FIRST_OBJECT_SLIDER, "ArrowLeft" if move % 2 else "ArrowRight"))
            _wait(lambda: len(changes) > 0)
            to_state.append(changes[0] - presses[-1].pressed)
            page.settle()
        viewer.shared.leave(listener)
        with _orbiting(session.client, viewer.viewed):
            rate = page.frames_per_second(options.seconds)
    _wait(lambda: not viewer.sessions)
    return {
        "key_to_state_ms": 1e3 * statistics.median(to_state),
        "key_to_frame_ms": 1e3 * statistics.median(press.to_frame for press in presses),
        "frames_per_s": rate,
        "splats_per_s": rate * viewer.viewed.snapshot.num_splats,
    }


@contextmanager
def _orbiting(client: viser.ClientHandle, viewed: Viewed) -> Iterator[None]:
    """A client's camera that is moved to and fro, so that its browser has to sort and draw again and again."""
    stop = threading.Event()
    centre, radius = viewed.snapshot.camera_centres[0], 0.1 * viewed.snapshot.distance
    side = viewed.snapshot.cam_from_world[0, 0, :3]

    def fly() -> None:
        started = time.monotonic()
        while not stop.wait(1 / ORBIT_RATE):
            client.camera.position = centre + radius * math.sin(2 * (time.monotonic() - started)) * side

    thread = threading.Thread(target=fly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _pictures_per_second(scene: Scene, width: int, height: int, seconds: float) -> float:
    """Pictures drawn by the server, as a client gets them while it flies, without sending."""
    world = World("start", (1.0,) * scene.num_objects)
    camera = Camera(scene.objects[0].cam_from_obj[0], 2 * math.atan(scene.height / (2 * float(scene.intrinsics[1, 1]))))
    job = Job(scene, (world,), (True,) * scene.num_objects, 0, "colour")
    draw(job, camera, width, height)  # compiles
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        draw(job, camera, width, height)
        count += 1
    return count / spent


def _watched_training(options: ViewerBenchmark) -> dict:
    """What a step of one training takes while a client of another process watches, and while nobody does, in turns.

    In wall-clock time and in the training process's CPU time, all its threads together: the page is drawn elsewhere,
    and on a busy machine only the latter is steady.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = load_scene(write_demo_scene(Path(folder) / "demo"))
    config = TrainConfig()
    schedule = dataclasses.replace(config.schedule, bootstrap_steps=10**7)
    config = dataclasses.replace(config, schedule=schedule)
    generator = torch.Generator().manual_seed(0)
    optimizer = JointOptimizer(initial_scene(data, config.gaussians), data, config, generator)
    server = viser.ViserServer(host="127.0.0.1", port=PORT, verbose=False)
    live = LiveView(server, optimizer, data)
    steps = optimizer.run()
    try:
        for _ in range(WARM_UP_STEPS):
            live.after_step(next(steps))
        alone, watched = [], []
        for stretch in range(options.stretches):
            for with_client in (True, False) if stretch % 2 else (False, True):
                costs = watched if with_client else alone
                with _someone_watching(server) if with_client else _nobody_watching(server):
                    costs.append(_cost_of_a_step(steps, live, options.seconds))
    finally:
        live.close()
        server.stop()
    pairs = list(zip(alone, watched, strict=True))
    return {
        "gaussians": optimizer.scene.num_gaussians,
        "alone": StepCost.median(alone)._asdict(),
        "watched": StepCost.median(watched)._asdict(),
        "slower_by": StepCost.median([two.relative_to(one) for one, two in pairs])._asdict(),
    }


class StepCost(NamedTuple):
    """Seconds of one training step."""

    wall: float
    cpu: float

    @staticmethod
    def median(costs: list[StepCost]) -> StepCost:
        return StepCost(*(statistics.median(values) for values in zip(*costs, strict=True)))

    def relative_to(self, other: StepCost) -> StepCost:
        """The share by which this is more."""
        return StepCost(self.wall / other.wall - 1, self.cpu / other.cpu - 1)


def _cost_of_a_step(steps: Iterator, live: LiveView, seconds: float) -> StepCost:
    count, started, cpu = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - started) < seconds:
        live.after_step(next(steps))
        count += 1
    return StepCost(spent / count, (time.process_time() - cpu) / count)


@contextmanager
def _someone_watching(server: viser.ViserServer) -> Iterator[None]:
    program = f"from osn_gs.benchmarks.page_client import watch; watch({server.get_port()})"
    client = subprocess.Popen([sys.executable, "-c", program])
    _wait(lambda: len(server.get_clients()) == 1)
    try:
        yield
    finally:
        client.terminate()
        client.wait()


@contextmanager
def _nobody_watching(server: viser.ViserServer) -> Iterator[None]:
    _wait(lambda: not server.get_clients())
    yield


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ConfigError(f"the viewer did not answer within {seconds:g} s; is the machine very busy?")
        time.sleep(0.002)


def _table(rows: list[dict]) -> Table:
    """One column for each scene."""
    table = Table("", title=f"A slider's way and pictures a second (load {os.getloadavg()[0]:.1f})")
    for row in rows:
        table.add_column(f"{row['splats']:,} splats", justify="right")
    for label, key, form in (
        ("one move on the server, ms", "server_ms", "{:.1f}"),
        ("client's move until its answer, ms", "round_trip_ms", "{:.0f}"),
        ("key press to server state, ms", "key_to_state_ms", "{:.0f}"),
        ("key press to drawn frame, ms", "key_to_frame_ms", "{:.0f}"),
        ("frames a second, software WebGL", "frames_per_s", "{:.1f}"),
        ("splats a second, software WebGL", "splats_per_s", "{:,.0f}"),
        (f"server's pictures a second, CPU, {CPU_PICTURE[0]}x{CPU_PICTURE[1]}", "pictures_per_s_cpu", "{:.1f}"),
        (f"server's pictures a second, CUDA, {CUDA_PICTURE[0]}x{CUDA_PICTURE[1]}", "pictures_per_s_cuda", "{:.1f}"),
    ):
        if any(key in row for row in rows):
            table.add_row(label, *(form.format(row[key]) for row in rows))
    return table


def _training_table(watched: dict) -> Table:
    table = Table("a step of the demo scene", title="Training, watched by one client of another process")
    table.add_column("wall clock", justify="right")
    table.add_column("CPU", justify="right")
    for label in ("alone", "watched"):
        table.add_row(f"{label}, ms", *(f"{1e3 * watched[label][clock]:.0f}" for clock in ("wall", "cpu")))
    table.add_row("more when watched", *(f"{100 * watched['slower_by'][clock]:.1f} %" for clock in ("wall", "cpu")))
    return table
