"""Which objects bend, and what their deformation is taught."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.errors import ConfigError
from osn_gs.gaussians.deformation import NodeDeformation
from osn_gs.scene.scene import ObjectGroup
from osn_gs.training.config import DeformationConfig, DeformationMode


def deformation_modes(config: DeformationConfig, object_names: Sequence[str]) -> tuple[DeformationMode, ...]:
    """The mode of each object; the background is rigid.

    Raises ConfigError for an object that is not there, and for a background that is asked to bend.
    """
    modes: list[DeformationMode] = ["rigid", *[config.default] * (len(object_names) - 1)]
    by_name = {str(k): k for k in range(len(object_names))} | {name: k for k, name in enumerate(object_names)}
    for entry in config.objects:
        name, _, mode = entry.rpartition("=")
        if name not in by_name:
            raise ConfigError(
                f"deformation.objects: there is no object {name!r}; the objects are {', '.join(object_names)}."
            )
        if by_name[name] == 0 and mode != "rigid":
            raise ConfigError(f"deformation.objects: {entry} is not possible, the background is rigid.")
        modes[by_name[name]] = mode
    return tuple(modes)


def new_deformation(group: ObjectGroup, config: DeformationConfig, num_nodes: int) -> NodeDeformation:
    """A deformation of an object that does nothing yet."""
    num_frames = len(group.cam_from_obj)
    return NodeDeformation.on_gaussians(group.gaussians, num_nodes, num_frames, config.knot_spacing)


def deformation_optimizer(deformation: NodeDeformation, config: DeformationConfig) -> torch.optim.Optimizer:
    """Adam on the motion of the nodes."""
    return torch.optim.Adam(deformation.parameters(), lr=config.learning_rate, eps=1e-15)


def deformation_loss(deformation: NodeDeformation, config: DeformationConfig, time_step: int) -> Float[Tensor, ""]:
    """What holds a deformation back: it stays near rigid in a frame, smooth over all of them, and small."""
    return (
        config.stretching * deformation.stretching(time_step)
        + config.jerkiness * deformation.jerkiness()
        + config.magnitude * deformation.magnitude()
    )
