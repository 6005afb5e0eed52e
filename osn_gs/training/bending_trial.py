"""Does an object bend? Two short fits decide, once the bootstrap has fitted it as if it were rigid.

One fit gives the object control nodes, the other a single node, which is a rigid motion in each frame: what a single
node gains comes from noisy poses and says nothing of bending. Both go the same way. First the motion is fitted to the
bootstrap's Gaussians. These are blurred over all the shapes of an object that bends, so they are then given up for new
ones on the sparse points, each point taken back from its frame's shape to the canonical one, and both are fitted
together. Every third frame is left out and judges: a motion that follows noise is wrong in the frame between.

TODO margins
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.scene.render import render_layer
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training.config import TrainConfig
from osn_gs.training.deformation import deformation_loss, deformation_optimizer, new_deformation
from osn_gs.training.optimizers import gaussian_optimizers
from osn_gs.training.start import object_extent, start_gaussians

LEAST_PIXELS = 30  # of an object in a frame that is used
HOLD_OUT_EVERY = 3
LEAST_FRAMES = 6  # with fewer, what a frame in between looks like says little
MASK_WEIGHT = 0.1  # of the mask's cross entropy beside the colour error
MOTION_SHARE = 0.4  # of the steps, on the motion alone
EPS = 1e-6


@dataclass(frozen=True)
class BendingTrial:
    """The trial of one object: its loss in the frames left out, moved rigidly and bent, None where too few show it."""

    object_name: str
    rigid_loss: float | None
    bent_loss: float | None
    bends: bool

    @property
    def gain(self) -> float | None:
        """The share by which bending lowers the loss."""
        return None if self.rigid_loss is None else 1 - self.bent_loss / self.rigid_loss


def try_bending(scene: Scene, k: int, data: SceneData, config: TrainConfig) -> tuple[BendingTrial, ObjectGroup]:
    """The trial of object k of a scene that the bootstrap has fitted, and the object as the bent fit left it."""
    group = scene.objects[k]
    frames = usable_frames(group, k, data)
    if len(frames) < LEAST_FRAMES:
        return BendingTrial(group.name, None, None, bends=False), group
    held_out = frames[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY]
    fitted = [t for t in frames if t not in held_out]
    moved, bent = (fit_bent(scene, k, data, fitted, nodes, config) for nodes in (1, config.deformation.nodes))
    rigid_loss, bent_loss = (_mean_loss(scene, fit, k, data, held_out) for fit in (moved, bent))
    bends = bent_loss < (1 - config.deformation.least_gain) * rigid_loss
    return BendingTrial(group.name, rigid_loss, bent_loss, bends), bent


def usable_frames(group: ObjectGroup, k: int, data: SceneData) -> list[int]:
    """The frames that show enough of object k to be compared with."""
    shown = (data.object_ids == k).sum(dim=(1, 2)) >= LEAST_PIXELS
    return torch.nonzero(shown & group.visible.cpu()).flatten().tolist()


def fit_bent(
    scene: Scene, k: int, data: SceneData, frames: list[int], num_nodes: int, config: TrainConfig
) -> ObjectGroup:
    """Object k with a deformation of `num_nodes` fitted to some frames, and with new Gaussians that fit it.

    The scene's own object stays as it is.
    """
    old = scene.objects[k]
    # random numbers of its own: a run in which nothing is found to bend goes on as if nothing had been tried
    generator = torch.Generator().manual_seed(config.seed)
    deformation = new_deformation(old, config.deformation, num_nodes)
    motion = deformation_optimizer(deformation, config.deformation)
    steps_alone = round(MOTION_SHARE * config.deformation.trial_steps)
    blurred = ObjectGroup(old.name, copy.deepcopy(old.gaussians), old.cam_from_obj, old.visible, deformation)
    blurred.gaussians.requires_grad_(False)
    _fit(scene, blurred, k, data, frames, [motion], steps_alone, config, generator)
    gaussians = start_gaussians(data, k, config.gaussians, scene.intrinsics.device, deformation)
    sharp = ObjectGroup(old.name, gaussians, old.cam_from_obj, old.visible, deformation)
    optimizers = [motion, *gaussian_optimizers(gaussians, config.gaussians, object_extent(data, k)).values()]
    _fit(scene, sharp, k, data, frames, optimizers, config.deformation.trial_steps - steps_alone, config, generator)
    return sharp


def _fit(
    scene: Scene,
    group: ObjectGroup,
    k: int,
    data: SceneData,
    frames: list[int],
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    config: TrainConfig,
    generator: torch.Generator,
) -> None:
    """Steps on random frames; the motion's rate, of the first optimizer, falls to its end on the way."""
    for step in range(steps):
        t = frames[int(torch.randint(len(frames), (1,), generator=generator))]
        loss = _frame_loss(scene, group, k, data, t) + deformation_loss(group.deformation, config.deformation, t)
        loss.backward()
        progress = step / steps
        rate = config.deformation.learning_rate * config.deformation.learning_rate_end**progress
        optimizers[0].param_groups[0]["lr"] = rate
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _mean_loss(scene: Scene, group: ObjectGroup, k: int, data: SceneData, frames: list[int]) -> float:
    return sum(float(_frame_loss(scene, group, k, data, t)) for t in frames) / len(frames)


def _frame_loss(scene: Scene, group: ObjectGroup, k: int, data: SceneData, time_step: int) -> Float[Tensor, ""]:
    """Colour error of the object's pixels, and its mask's cross entropy, as `losses` has them; per pixel of it."""
    layer = render_layer(scene, group, time_step)
    image = data.images[time_step].to(layer.rgb) / 255
    object_ids = data.object_ids[time_step].to(layer.rgb.device)
    shown, empty = object_ids == k, object_ids == 0
    alpha = layer.alpha.clamp(EPS, 1 - EPS)
    color = (layer.rgb - image).abs().mean(dim=-1)[shown].sum()
    mask = -alpha[shown].log().sum() - (1 - alpha[empty]).log().sum()
    return (color + MASK_WEIGHT * mask) / shown.sum()
