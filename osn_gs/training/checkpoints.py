"""Checkpoints of a run: one folder each, tensors as safetensors and the rest as JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from osn_gs.errors import CheckpointError
from osn_gs.gaussians.deformation import NodeDeformation
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training.joint_optimizer import BendingReport, JointOptimizer, RoundReport

FORMAT = "osn-gs checkpoint 1"
KEEP = 2  # checkpoints left in a run folder


def save_checkpoint(folder: Path, optimizer: JointOptimizer) -> Path:
    """Write `folder/step_<gaussian step>_<phase>` with all that the next step depends on; prune older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{optimizer.gaussian_step:07d}_{optimizer.phase_index:02d}"
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing_"))
    try:
        save_file(_tensors(optimizer), temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(_values(optimizer), indent=1) + "\n")
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in checkpoint_folders(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_*"))


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint. Raises CheckpointError where there is none."""
    found = checkpoint_folders(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint here; start the run without --resume.")
    return found[-1]


def restore(optimizer: JointOptimizer, checkpoint: Path) -> None:
    """Put a freshly made optimizer where the checkpoint was taken: its next step is the one that would have come.

    Raises CheckpointError for a checkpoint of another scene.
    """
    tensors, values = _read(checkpoint)
    _check_same_scene(optimizer, values, checkpoint)
    for k, group in enumerate(optimizer.scene.objects):
        for name in ObjectGaussians.NAMES:
            adam = optimizer.optimizers[k][name]
            parameter = nn.Parameter(tensors[f"objects.{k}.gaussians.{name}"].to(optimizer.device))
            group.gaussians.params[name] = parameter
            adam.state.clear()
            adam.param_groups[0]["params"] = [parameter]
            moments = _below(tensors, f"optimizers.{k}.{name}.")
            if moments:
                adam.state[parameter] = {key: value.to(optimizer.device) for key, value in moments.items()}
        density = _below(tensors, f"density.{k}.")
        optimizer.density[k].load_state_tensors({key: value.to(optimizer.device) for key, value in density.items()})
        restored = _deformation(tensors, values, k)
        if restored is not None:
            optimizer.set_deformation(k, restored.to(optimizer.device))
            for name, parameter in restored.named_parameters():
                moments = _below(tensors, f"deformation_optimizers.{k}.{name}.")
                state = {key: value.to(optimizer.device) for key, value in moments.items() if key != "step"}
                if moments:
                    optimizer.deformation_optimizers[k].state[parameter] = {"step": moments["step"], **state}
    optimizer.network.load_state_dict(_below(tensors, "network."))
    for index, parameter in enumerate(optimizer.network.parameters()):
        moments = _below(tensors, f"network_optimizer.{index}.")
        if moments:
            optimizer.network_optimizer.state[parameter] = moments
    optimizer.valid_scales = tensors["valid_scales"]
    optimizer.generator.set_state(tensors["random_state"])
    optimizer.phase_index = values["phase_index"]
    optimizer.step_in_phase = values["step_in_phase"]
    optimizer.gaussian_step = values["gaussian_step"]
    optimizer.rounds = [RoundReport.from_dict(report) for report in values["rounds"]]
    if values.get("bending") is not None:
        optimizer.bending = BendingReport.from_dict(values["bending"])


def _deformation(tensors: dict[str, Tensor], values: dict[str, Any], k: int) -> NodeDeformation | None:
    """The deformation of object k; none for a rigid one, as all are in checkpoints from before there was any."""
    stored = _below(tensors, f"objects.{k}.deformation.")
    if not stored:
        return None
    num_frames = len(tensors[f"objects.{k}.cam_from_obj"])
    deformation = NodeDeformation(stored["nodes"], float(stored["size"]), num_frames, values["knot_spacing"])
    deformation.load_state_dict(stored)
    return deformation


def _check_same_scene(optimizer: JointOptimizer, values: dict[str, Any], checkpoint: Path) -> None:
    scene = optimizer.scene
    arrived = (list(scene.object_names), scene.width, scene.height)
    expected = (values["object_names"], values["width"], values["height"])
    if arrived != expected:
        raise CheckpointError(
            f"{checkpoint}: made of {', '.join(expected[0])} at {expected[1]}x{expected[2]}, but the scene folder now "
            f"holds {', '.join(arrived[0])} at {arrived[1]}x{arrived[2]}; put the scene back, or start a new run."
        )


class Trained(NamedTuple):
    """What a checkpoint holds for those who only look: scene, scale network and the rounds taught so far."""

    scene: Scene
    network: ObjectScaleNetwork
    rounds: tuple[RoundReport, ...]


def load_trained(checkpoint: Path) -> Trained:
    """The scene and the scale network of a checkpoint, on the CPU, without the data they were trained on."""
    tensors, values = _read(checkpoint)
    objects = [
        ObjectGroup(
            name,
            ObjectGaussians(_below(tensors, f"objects.{k}.gaussians.")),
            tensors[f"objects.{k}.cam_from_obj"],
            tensors[f"objects.{k}.visible"],
            _deformation(tensors, values, k),
        )
        for k, name in enumerate(values["object_names"])
    ]
    scene = Scene(
        objects,
        tensors["intrinsics"],
        values["width"],
        values["height"],
        tensors["scale_ranges"],
        values["near"],
        values["far"],
    )
    network = ObjectScaleNetwork(tensors["scale_ranges"])
    network.load_state_dict(_below(tensors, "network."))
    return Trained(scene, network, tuple(RoundReport.from_dict(report) for report in values["rounds"]))


def _tensors(optimizer: JointOptimizer) -> dict[str, Tensor]:
    scene = optimizer.scene
    tensors = {
        "intrinsics": scene.intrinsics,
        "scale_ranges": scene.scale_ranges,
        "valid_scales": optimizer.valid_scales,
        "random_state": optimizer.generator.get_state(),
    }
    for k, group in enumerate(scene.objects):
        tensors[f"objects.{k}.cam_from_obj"] = group.cam_from_obj
        tensors[f"objects.{k}.visible"] = group.visible
        for name, parameter in group.gaussians.params.items():
            tensors[f"objects.{k}.gaussians.{name}"] = parameter
            moments = optimizer.optimizers[k][name].state.get(parameter, {})
            tensors.update({f"optimizers.{k}.{name}.{key}": value for key, value in moments.items()})
        if group.deformation is not None:
            tensors.update({f"objects.{k}.deformation.{key}": v for key, v in group.deformation.state_dict().items()})
            for name, parameter in group.deformation.named_parameters():
                moments = optimizer.deformation_optimizers[k].state.get(parameter, {})
                tensors.update({f"deformation_optimizers.{k}.{name}.{key}": v for key, v in moments.items()})
        tensors.update({f"density.{k}.{key}": value for key, value in optimizer.density[k].state_tensors().items()})
    tensors.update({f"network.{key}": value for key, value in optimizer.network.state_dict().items()})
    for index, parameter in enumerate(optimizer.network.parameters()):
        moments = optimizer.network_optimizer.state.get(parameter, {})
        tensors.update({f"network_optimizer.{index}.{key}": value for key, value in moments.items()})
    return {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}


def _values(optimizer: JointOptimizer) -> dict[str, Any]:
    scene = optimizer.scene
    return {
        "format": FORMAT,
        "phase_index": optimizer.phase_index,
        "step_in_phase": optimizer.step_in_phase,
        "gaussian_step": optimizer.gaussian_step,
        "finished": optimizer.finished,
        "object_names": list(scene.object_names),
        "width": scene.width,
        "height": scene.height,
        "near": scene.near,
        "far": scene.far,
        "rounds": [asdict(report) for report in optimizer.rounds],
        "knot_spacing": optimizer.config.deformation.knot_spacing,
        "bending": None if optimizer.bending is None else asdict(optimizer.bending),
    }


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        values = json.loads((checkpoint / "state.json").read_text())
        tensors = load_file(checkpoint / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot read this checkpoint: {error}.") from error
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint}: expected the format {FORMAT!r}, got {values.get('format')!r}.")
    return tensors, values


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name starts with `prefix`, under the rest of their name."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
