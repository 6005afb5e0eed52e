"""The blur of the training pixels, given to the Gaussians themselves, for pictures finer than those trained on.

The rasterizer widens every splat by `EPS2D` square pixels, so training leaves Gaussians as thin as it likes: needles,
once a picture has smaller pixels. No frame shows detail below its own pixels, so nothing is lost by widening the
Gaussians in space by what a training pixel covers at their distance. Mip-Splatting (Yu et al. 2024) learns with such a
filter; here it is put on afterwards, with the width the rasterizer trained with.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.scene.scene import NEAR_PLANE, Scene

EPS2D = 0.3  # square pixels; what `rasterize` adds by default
MOST_FRAMES = 16  # of which the nearest distance is taken


@torch.no_grad()
def pixel_blur(scene: Scene, k: int) -> Float[Tensor, "n"]:
    """Standard deviation, in object k's units, that `EPS2D` square training pixels cover at each of its Gaussians.

    From the nearest training camera that has the Gaussian before it: there the pixels resolve most.
    """
    group = scene.objects[k]
    frames = torch.nonzero(group.visible).flatten()
    frames = frames[torch.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().long()]
    depths = group.gaussians.means.new_full((len(group.gaussians),), torch.inf)
    for t in frames.tolist():
        means, _ = group.at(t)
        z = means @ group.cam_from_obj[t, 2, :3] + group.cam_from_obj[t, 2, 3]
        depths = torch.where(z > NEAR_PLANE, torch.minimum(depths, z), depths)
    depths = torch.where(torch.isfinite(depths), depths, 0.0)  # never before a camera: nothing is known of its size
    return EPS2D**0.5 * depths / scene.intrinsics[1, 1]


def missing_blur(scene: Scene, focal: float) -> float:
    """The share of a training pixel's blur, in variance, that the rasterizer does not add to a picture of this focal
    length in pixels: none for one as coarse as the training's, nearly all for a very fine one."""
    return max(0.0, 1.0 - (float(scene.intrinsics[1, 1]) / focal) ** 2)
