"""What the reconstructed layers say of depth order: the oracle's input."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.scene.render import render_layers
from osn_gs.scene.scene import Scene

COVERED = 0.5  # an object covers a pixel where it is more opaque than this


@torch.no_grad()
def reconstructed_layer_depths(scene: Scene) -> Float[Tensor, "t k h w"]:
    """z-depths of every object alone in every training frame, at object scale 1, inf where it does not cover."""
    frames = []
    for t in range(scene.num_frames):
        layers = render_layers(scene, t)
        frames.append(torch.where(layers.alphas > COVERED, layers.depths, torch.inf).cpu())
    return torch.stack(frames)
