"""Settings of the whole test run."""

from pathlib import Path

import pytest
import torch

from osn_gs.data.demo import write_demo_scene

torch.set_num_threads(1)  # many small operations: more threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    viewer = parser.getgroup("viewer")
    viewer.addoption("--screenshots", type=Path, help="folder that gets the README's pictures of the viewer")
    viewer.addoption("--screenshots-of", type=Path, help="run folder to take them of, in place of a small scene")
    viewer.addoption("--crowd-seconds", type=float, default=4.0, help="how long thirty clients come and go")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo scene, small: 8 frames of 64x48 with 3 held-out views a split. Read only."""
    return write_demo_scene(tmp_path_factory.mktemp("scenes") / "demo", 8, 64, 48, num_held_out=3)
