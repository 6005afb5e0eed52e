"""A run folder of the demo that took seconds, as far as a checkpoint: enough to sample, render and evaluate."""

from __future__ import annotations

from pathlib import Path

import torch

from osn_gs.config import config_to_yaml
from osn_gs.data.osn_layout import load_scene
from osn_gs.run.folder import RunFolder
from osn_gs.training.checkpoints import save_checkpoint
from osn_gs.training.config import DeformationConfig, ScheduleConfig, TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer
from osn_gs.training.start import initial_scene


def write_short_run(root: Path, demo_folder: Path, bootstrap_steps: int, network_steps: int) -> Path:
    """Train a bootstrap and one round of the network into `root`, nothing bends."""
    data = load_scene(demo_folder)
    schedule = ScheduleConfig(bootstrap_steps=bootstrap_steps, rounds=0, network_steps=network_steps, final_steps=0)
    config = TrainConfig(data=demo_folder, schedule=schedule, deformation=DeformationConfig(default="rigid"))
    optimizer = JointOptimizer(initial_scene(data, config.gaussians), data, config, torch.Generator().manual_seed(0))
    for _ in optimizer.run():
        pass
    folder = RunFolder(root)
    save_checkpoint(folder.checkpoints, optimizer)
    folder.config.write_text(config_to_yaml(config))
    return folder.root
