"""`tools/view.py`: a finished or unfinished run in the browser."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape

from osn_gs.config import parse_config
from osn_gs.run.open_run import OpenedRun, choose_device, newest_run, open_run
from osn_gs.run.serve import LOOPBACK, address, start_server
from osn_gs.scene.measures import ground_plane
from osn_gs.viewer.snapshot import take_snapshot
from osn_gs.viewer.viewer import Viewed, Viewer
from osn_gs.viewer.worlds import Worlds

PROGRAM = "python tools/view.py"


@dataclass(frozen=True)
class ViewConfig:
    """Fly through a run in the browser, choose among the worlds that explain its video, take them away.

    Needs no GPU: the browser draws the splats. Where there is CUDA, pictures drawn on the server come from gsplat.
    """

    run: tyro.conf.Positional[Path | None] = None
    """Run folder of tools/train.py; by default the newest below runs/."""
    host: str = LOOPBACK
    """Address the page is served at; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port the page is served at; the next free one where it is taken."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where pictures are drawn on the server."""


def view_from_arguments(arguments: list[str]) -> int:
    """Parse the command line and serve the run until Ctrl-C; the exit code of the tool."""
    config = parse_config(ViewConfig, arguments, PROGRAM)
    console = Console(soft_wrap=True, highlight=False)
    torch.set_num_threads(1)  # the rasterizer has its own threads
    device = choose_device(config.device)
    run = open_run(config.run or newest_run(), console)
    server = start_server(config.host, config.port, run.folder.root.name, console)
    viewer = Viewer(server, viewed_run(run, device))
    try:
        console.print(
            f"[bold]{escape(str(run.folder.root))}[/]: open {address(server)} in a browser; Ctrl-C here ends it."
        )
        server.sleep_forever()
    except KeyboardInterrupt:
        console.print("Closed.")
    finally:
        viewer.close()
        server.stop()
    return 0


def viewed_run(run: OpenedRun, device: torch.device) -> Viewed:
    """What the viewer shows of an opened run."""
    scene = run.trained.scene
    ground = ground_plane(scene)
    learned = run.learned
    worlds = Worlds(
        learned.object_names,
        learned.scale_ranges,
        learned.network,
        learned.oracle,
        learned.accuracy_threshold,
        run.configurations,
    )
    return Viewed(
        name=run.folder.root.name,
        scene=copy.deepcopy(scene).to(device),
        snapshot=take_snapshot(scene, None if ground is None else ground.normal),
        worlds=worlds,
        frames=None if run.data is None else run.data.images.numpy(),
    )
