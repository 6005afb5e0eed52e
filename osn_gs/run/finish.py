"""What a run leaves behind when its schedule is done: configurations, numbers, exports, pictures, a summary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from osn_gs.data.scene_data import SceneData
from osn_gs.export.configurations import (
    ConfigurationSet,
    export_configuration,
    scene_frames,
    spread_over_frames,
    write_configurations,
)
from osn_gs.files import write_json_atomic
from osn_gs.object_scales.sampling import farthest_point_subset
from osn_gs.run.drawing import LearnedScales, draw_configurations
from osn_gs.run.folder import RunFolder
from osn_gs.run.previews import write_previews
from osn_gs.run.statistics import picture_statistics, truth_report
from osn_gs.run.summary import print_summary
from osn_gs.scene.scene import Scene
from osn_gs.training.config import ExportConfig, TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer

PLOTTED_SAMPLES = 1024


def finish_run(
    optimizer: JointOptimizer, data: SceneData, config: TrainConfig, folder: RunFolder, console: Console
) -> None:
    """Sample configurations, export, draw and measure; then say what came of it and what to do next."""
    scene, oracle, threshold = optimizer.scene, optimizer.current_oracle(), optimizer.accuracy_threshold()
    learned = LearnedScales(scene.object_names, data.scale_ranges, optimizer.network, oracle, threshold)
    configurations = draw_configurations(learned, config.object_scales.samples, optimizer.generator)
    write_configurations(folder.configurations, configurations)
    export_configurations(scene, configurations, config.export, folder)
    write_previews(
        folder.preview,
        scene,
        data,
        configurations,
        optimizer.sample_valid_scales(PLOTTED_SAMPLES, threshold),
        oracle,
        threshold,
        optimizer.generator,
    )
    statistics = final_statistics(optimizer, data, configurations, config.evaluate_configurations, console)
    write_json_atomic(folder.final_stats, statistics)
    print_summary(console, data, configurations, statistics, folder)


def export_configurations(
    scene: Scene, configurations: ConfigurationSet, config: ExportConfig, folder: RunFolder
) -> None:
    """Write the contact configuration, and samples far from each other, as .ply files with manifests."""
    contact, *samples = configurations.configurations
    far_apart = farthest_point_subset(torch.tensor([sample.object_scales for sample in samples]), config.configurations)
    times = spread_over_frames(scene.num_frames, config.frames)
    for configuration in (contact, *(samples[index] for index in far_apart.tolist()[: config.configurations])):
        frames = scene_frames(scene, configuration.scales_like(scene.intrinsics), times)
        export_configuration(folder.export / configuration.name, configuration, scene.object_names, frames)


def final_statistics(
    optimizer: JointOptimizer, data: SceneData, configurations: ConfigurationSet, num_samples: int, console: Console
) -> dict[str, Any]:
    """All that goes into stats/final.json."""
    scene = optimizer.scene
    object_scales = torch.tensor([configuration.object_scales for configuration in configurations.configurations])
    contact, samples = object_scales[0], object_scales[1 : 1 + num_samples]
    with Progress(console=console, transient=True) as progress:
        views = data.num_frames + sum(len(split) for split in data.held_out.values())
        task = progress.add_task("scoring views", total=views)
        pictures = picture_statistics(scene, data, contact, samples, on_view=lambda: progress.advance(task))
    truth = truth_report(
        data,
        optimizer.network,
        optimizer.current_oracle(),
        optimizer.label_rule(),
        optimizer.accuracy_threshold(),
        contact.double(),
        optimizer.generator,
    )
    return {
        "scene": data.name,
        "num_objects": data.num_objects,
        "num_gaussians": [len(group.gaussians) for group in scene.objects],
        "num_configurations": len(samples),
        "deforming": list(optimizer.deforming),
        "learned_set": asdict(optimizer.rounds[-1].learned_set) if optimizer.rounds else None,
        "truth": None if truth is None else asdict(truth),
        "pictures": pictures,
    }
