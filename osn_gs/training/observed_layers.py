"""What the reconstructed layers say of depth order: the oracle of a scene as it is now."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from osn_gs.object_scales.oracle import ScaleOracle, ScaleOracleBuilder
from osn_gs.scene.render import ObjectLayers, render_layers
from osn_gs.scene.scene import Scene

COVERED = 0.5  # an object covers a pixel where it is more opaque than this


@torch.no_grad()
def oracle_of_scene(scene: Scene, object_ids: UInt8[Tensor, "t h w"]) -> ScaleOracle:
    """Tabulate the depth-order constraints of all training frames, one frame's layers at a time."""
    builder = ScaleOracleBuilder(scene.scale_ranges)
    for t in range(scene.num_frames):
        builder.add_frame(object_ids[t], covered_depths(render_layers(scene, t)))
    return builder.build()


def covered_depths(layers: ObjectLayers) -> Float[Tensor, "k h w"]:
    """z-depths of every object alone, at object scale 1, inf where it does not cover the pixel."""
    return torch.where(layers.alphas > COVERED, layers.depths, torch.inf)
