"""What a run leaves behind when its schedule is done: configurations, numbers, exports, pictures, a summary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from osn_gs.data.scene_data import SceneData
from osn_gs.evaluation.report import candidates_of, report_views
from osn_gs.evaluation.truth import truth_report
from osn_gs.evaluation.views import TRAIN_SPLIT, train_views
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
from osn_gs.run.summary import print_summary
from osn_gs.scene.scene import Scene
from osn_gs.training.config import ExportConfig, TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer

PLOTTED_SAMPLES = 1024
NUM_TRAIN_SAMPLES = 2


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
    statistics = final_statistics(optimizer, data, configurations, config, console)
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
    optimizer: JointOptimizer,
    data: SceneData,
    configurations: ConfigurationSet,
    config: TrainConfig,
    console: Console,
) -> dict[str, Any]:
    """All that goes into stats/final.json."""
    scene = optimizer.scene
    object_scales = torch.tensor([configuration.object_scales for configuration in configurations.configurations])
    contact, samples = object_scales[0], object_scales[1 : 1 + config.evaluate_configurations]
    views = {TRAIN_SPLIT: train_views(scene, data), **data.held_out}
    candidates = candidates_of(data, contact, samples, baselines=False, generator=optimizer.generator)
    # Training views look the same under all valid configurations, so a few samples do there.
    few = candidates_of(data, contact, samples[:NUM_TRAIN_SAMPLES], baselines=False, generator=optimizer.generator)
    pictures = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scoring views", total=sum(len(split) for split in views.values()))
        for split, views_of_split in views.items():
            judged = few if split == TRAIN_SPLIT else candidates
            scored = report_views(scene, views_of_split, judged, on_view=lambda: progress.advance(task))
            pictures[split] = scored["all"]
    truth = truth_report(
        data,
        optimizer.network,
        optimizer.current_oracle(),
        config.object_scales.rule(config.schedule.last_round),
        optimizer.accuracy_threshold(),
        contact.double(),
        samples,
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
