"""Does an object bend? Two short fits decide, once the bootstrap has fitted it as if it were rigid.

One fit gives the object control nodes, the other a single node, which is a rigid motion in each frame: what a single
node gains comes from noisy poses and says nothing of bending. Both go the same way. First the motion is fitted to the
bootstrap's Gaussians. These are blurred over all the shapes of an object that bends, so they are then given up for new
ones on the sparse points, each point taken back from its frame's shape to the canonical one, and both are fitted
together. Every third frame is left out and judges: a motion that follows noise is wrong in the frame between.

Share of the loss that bending saves in the frames left out, after bootstraps of 800 to 3000 steps:

==================  ==============================  ==============================================================
scene, size         true poses                      prepared poses
==================  ==============================  ==============================================================
sway3, 160x120      cactus 34 %, others 2 to 3      cactus 35 %, others 1 to 4 (18 %: poses 29 degrees off)
tabletop3, 160x120  all rigid: -2 to 4              all rigid: 2 to 6
demo, 160x120       tower 17 to 26 %, others 2-6
demo, 80x60         tower 12 %, others -1 and 1
==================  ==============================  ==============================================================

so an object bends from a gain of 10 % on (`DeformationConfig.least_gain`). Fewer steps than 200 do not separate them:
what is rigid gains up to 10 % merely because many nodes get there sooner.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import SceneData, SparsePoints
from osn_gs.errors import ConfigError
from osn_gs.scene.render import ObjectLayer, render_layer
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training.config import TrainConfig
from osn_gs.training.deformation import deformation_loss, deformation_optimizer, new_deformation
from osn_gs.training.losses import sparse_depth_loss
from osn_gs.training.optimizers import gaussian_optimizers
from osn_gs.training.start import object_extent, start_gaussians

LEAST_PIXELS = 30  # of an object in a frame that is used
HOLD_OUT_EVERY = 3
LEAST_FRAMES = 6  # with fewer, what a frame in between looks like says little
MASK_WEIGHT = 0.1  # of the mask's cross entropy beside the colour error
DEPTH_SHARE = 3.0  # of the weight of the depth loss: about what that is in training for a pixel of an object
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


class _Frame(NamedTuple):
    """What an object is compared with in a frame: the image in [0, 1], as 1 or 0 where the mask shows the object, and
    where it shows the background and so leaves no place for it, and the object's sparse points."""

    time_step: int
    image: Float[Tensor, "h w 3"]
    shown: Float[Tensor, "h w"]
    empty: Float[Tensor, "h w"]
    points: SparsePoints


def try_bending(scene: Scene, k: int, data: SceneData, config: TrainConfig) -> tuple[BendingTrial, ObjectGroup]:
    """The trial of object k of a scene that the bootstrap has fitted, and the object as the bent fit left it."""
    group = scene.objects[k]
    frames = _usable_frames(group, k, data)
    if len(frames) < LEAST_FRAMES:
        return BendingTrial(group.name, None, None, bends=False), group
    held_out = frames[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY]
    fitted = [frame for i, frame in enumerate(frames) if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY // 2]
    moved, bent = (_fit(scene, k, data, fitted, nodes, config) for nodes in (1, config.deformation.nodes))
    rigid_loss, bent_loss = (_mean_loss(scene, fit, held_out) for fit in (moved, bent))
    bends = bent_loss < (1 - config.deformation.least_gain) * rigid_loss
    return BendingTrial(group.name, rigid_loss, bent_loss, bends), bent


def bend(scene: Scene, k: int, data: SceneData, config: TrainConfig) -> ObjectGroup:
    """Object k as the bent fit to all its frames leaves it. The scene's own object stays as it is.

    Raises ConfigError where no frame shows enough of it.
    """
    group = scene.objects[k]
    frames = _usable_frames(group, k, data)
    if not frames:
        raise ConfigError(
            f"{group.name}: told to bend, but no frame shows {LEAST_PIXELS} pixels of it at "
            f"{data.width}x{data.height}; leave it rigid (--deformation.objects {group.name}=rigid) or train on larger "
            "images."
        )
    return _fit(scene, k, data, frames, config.deformation.nodes, config)


def _usable_frames(group: ObjectGroup, k: int, data: SceneData) -> list[_Frame]:
    """The frames that show enough of object k to be compared with."""
    device = group.cam_from_obj.device
    frames = []
    for t in torch.nonzero(group.visible).flatten().tolist():
        object_ids = data.object_ids[t].to(device)
        shown = (object_ids == k).float()
        if shown.sum() >= LEAST_PIXELS:
            image, empty = data.images[t].to(device).float() / 255, (object_ids == 0).float()
            frames.append(_Frame(t, image, shown, empty, data.sparse_points[k].in_frame(t, device)))
    return frames


def _fit(
    scene: Scene, k: int, data: SceneData, frames: list[_Frame], num_nodes: int, config: TrainConfig
) -> ObjectGroup:
    """Object k with a deformation of `num_nodes` fitted to some frames, and with new Gaussians that fit it."""
    old = scene.objects[k]
    # random numbers of its own: a run in which nothing is found to bend goes on as if nothing had been tried
    generator = torch.Generator().manual_seed(config.seed)
    deformation = new_deformation(old, config.deformation, num_nodes)
    motion = deformation_optimizer(deformation, config.deformation)
    steps_alone = round(MOTION_SHARE * config.deformation.trial_steps)
    blurred = ObjectGroup(old.name, copy.deepcopy(old.gaussians), old.cam_from_obj, old.visible, deformation)
    blurred.gaussians.requires_grad_(False)
    _take_steps(scene, blurred, frames, [motion], steps_alone, config, generator)
    gaussians = start_gaussians(data, k, config.gaussians, scene.intrinsics.device, deformation)
    sharp = ObjectGroup(old.name, gaussians, old.cam_from_obj, old.visible, deformation)
    optimizers = [motion, *gaussian_optimizers(gaussians, config.gaussians, object_extent(data, k)).values()]
    steps_together = config.deformation.trial_steps - steps_alone
    _take_steps(scene, sharp, frames, optimizers, steps_together, config, generator)
    return sharp


def _take_steps(
    scene: Scene,
    group: ObjectGroup,
    frames: list[_Frame],
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    config: TrainConfig,
    generator: torch.Generator,
) -> None:
    """Steps on random frames; the motion's rate, of the first optimizer, falls to its end on the way."""
    bending = config.deformation
    for step in range(steps):
        frame = frames[int(torch.randint(len(frames), (1,), generator=generator))]
        layer = render_layer(scene, group, frame.time_step)
        depth = sparse_depth_loss(layer.depth[None], layer.alpha[None], [frame.points])
        loss = _picture_loss(layer, frame) + DEPTH_SHARE * config.losses.depth * bending.sparse_depth * depth
        loss = loss + deformation_loss(group.deformation, bending, frame.time_step)
        loss.backward()
        optimizers[0].param_groups[0]["lr"] = bending.learning_rate * bending.learning_rate_end ** (step / steps)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _mean_loss(scene: Scene, group: ObjectGroup, frames: list[_Frame]) -> float:
    losses = [_picture_loss(render_layer(scene, group, frame.time_step), frame) for frame in frames]
    return float(torch.stack(losses).mean())


def _picture_loss(layer: ObjectLayer, frame: _Frame) -> Float[Tensor, ""]:
    """Colour error of the object's pixels, and its mask's cross entropy, as `losses` has them; per pixel of it."""
    alpha = layer.alpha.clamp(EPS, 1 - EPS)
    color = ((layer.rgb - frame.image).abs().mean(dim=-1) * frame.shown).sum()
    mask = -(alpha.log() * frame.shown + (1 - alpha).log() * frame.empty).sum()
    return (color + MASK_WEIGHT * mask) / frame.shown.sum()
