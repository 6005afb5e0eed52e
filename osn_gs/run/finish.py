"""What a run leaves behind when its schedule is done: configurations, numbers, exports, pictures, a summary."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.export.configurations import (
    Configuration,
    ConfigurationSet,
    ObjectInterval,
    export_configuration,
    scene_frames,
    write_configurations,
)
from osn_gs.files import write_json_atomic
from osn_gs.object_scales.contact import contact_configuration
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.object_scales.sampling import farthest_point_subset
from osn_gs.object_scales.valid_bounds import valid_bounds
from osn_gs.run.folder import RunFolder
from osn_gs.run.previews import write_previews
from osn_gs.run.statistics import picture_statistics, truth_report
from osn_gs.run.summary import print_summary
from osn_gs.scene.scene import Scene
from osn_gs.training.config import ExportConfig, TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer

CONTACT_NAME = "contact"
PLOTTED_SAMPLES = 1024


def finish_run(
    optimizer: JointOptimizer, data: SceneData, config: TrainConfig, folder: RunFolder, console: Console
) -> None:
    """Sample configurations, measure, export and draw; then say what came of it and what to do next."""
    scene = optimizer.scene
    oracle = optimizer.oracle()
    threshold = optimizer.label_rule().accuracy_threshold(oracle, optimizer.generator)
    configurations = draw_configurations(optimizer, oracle, threshold, config.object_scales.samples)
    write_configurations(folder.configurations, configurations)
    object_scales = torch.tensor([sample.object_scales for sample in configurations.configurations])
    with Progress(console=console, transient=True) as progress:
        views = data.num_frames + sum(len(split) for split in data.held_out.values())
        task = progress.add_task("scoring views", total=views)
        pictures = picture_statistics(
            scene,
            data,
            object_scales[0],
            object_scales[1 : 1 + config.evaluate_configurations],
            on_view=lambda: progress.advance(task),
        )
    truth = truth_report(
        data, optimizer.network, oracle, optimizer.label_rule(), object_scales[0].double(), optimizer.generator
    )
    statistics: dict[str, Any] = {
        "scene": data.name,
        "num_objects": data.num_objects,
        "num_gaussians": [len(group.gaussians) for group in scene.objects],
        "learned_set": asdict(optimizer.rounds[-1].learned_set) if optimizer.rounds else None,
        "truth": None if truth is None else asdict(truth),
        "pictures": pictures,
    }
    write_json_atomic(folder.final_stats, statistics)
    export_configurations(scene, configurations, config.export, folder)
    write_previews(
        folder.preview,
        scene,
        data,
        configurations,
        optimizer.sample_valid_scales(PLOTTED_SAMPLES, oracle, threshold),
        oracle,
        threshold,
        optimizer.generator,
    )
    print_summary(console, data, configurations, statistics, folder)


def draw_configurations(
    optimizer: JointOptimizer, oracle: ScaleOracle, threshold: float, count: int
) -> ConfigurationSet:
    """The contact configuration and `count` vectors spread over the learned set, far apart ones first."""
    contact = contact_configuration(oracle, threshold, optimizer.generator)
    samples = optimizer.sample_valid_scales(count, oracle, threshold)
    samples = samples[farthest_point_subset(samples, count)]
    vectors = torch.cat([contact[None].to(samples), samples])
    scores = optimizer.network(vectors).tolist()
    accuracies = oracle.accuracy(vectors).tolist()
    names = [CONTACT_NAME, *(f"configuration_{index:03d}" for index in range(len(samples)))]
    bounds = valid_bounds(oracle, threshold, optimizer.generator)
    object_names = optimizer.scene.object_names
    return ConfigurationSet(
        object_names=object_names,
        intervals=tuple(
            ObjectInterval(object_names[bound.object], bound.lo, bound.hi, bound.lo_bounded_by, bound.hi_bounded_by)
            for bound in bounds
        ),
        configurations=tuple(
            Configuration(name, tuple(vector), score, accuracy)
            for name, vector, score, accuracy in zip(names, vectors.tolist(), scores, accuracies, strict=True)
        ),
    )


def export_configurations(
    scene: Scene, configurations: ConfigurationSet, config: ExportConfig, folder: RunFolder
) -> None:
    """Write the contact configuration and the first sampled ones as .ply files with manifests."""
    times = _evenly_spread(scene.num_frames, config.frames)
    for configuration in configurations.configurations[: 1 + config.configurations]:
        frames = scene_frames(scene, _scales_on(scene, configuration), times)
        export_configuration(folder.export / configuration.name, configuration, scene.object_names, frames)


def _scales_on(scene: Scene, configuration: Configuration) -> Float[Tensor, "k"]:
    return torch.tensor(configuration.object_scales).to(scene.intrinsics)


def _evenly_spread(num_frames: int, count: int) -> list[int]:
    """`count` time steps from first to last; every one for 0."""
    if count == 0 or count >= num_frames:
        return list(range(num_frames))
    if count == 1:
        return [0]
    return [math.floor(i * (num_frames - 1) / (count - 1)) for i in range(count)]
