"""Compositing object layers: the same pictures and gradients as rasterizing the placed cloud, where it is exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rasterize_clouds import Cloud, cloud_with_cameras, random_loss, relative_error
from torch.testing import assert_close

from osn_gs.rendering.layers import CompositedLayers, composite_layers, layer_depth_stds
from osn_gs.rendering.rasterize import rasterize
from osn_gs.threads import set_num_threads

BACKENDS = ("numba", "torch")
NUM_OBJECTS = 4
# Objects stand in thin slabs this deep; the scales of a row put them in another order without slabs touching.
SLAB_DEPTHS, SLAB_THICKNESS = (2.0, 3.0, 4.0, 5.0), 0.1
OBJECT_SCALES = torch.tensor([[1.0, 1, 1, 1], [3.0, 1, 1, 1], [1.0, 2, 1, 0.3], [1.9, 0.5, 1.4, 0.2]])


def slabs(seed: int = 0) -> tuple[Cloud, torch.Tensor]:
    """Four objects at different depths, all over the image of the identity camera, and whose each Gaussian is."""
    cloud = cloud_with_cameras(count=240, width=40, height=30, size=0.1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    object_index = torch.arange(240) % NUM_OBJECTS
    depths = torch.tensor(SLAB_DEPTHS)[object_index] + SLAB_THICKNESS * torch.rand(240, generator=generator)
    slopes = (torch.rand(240, 2, generator=generator) - 0.5) * torch.tensor([1.0, 0.75])
    means = torch.cat([slopes * depths[:, None], depths[:, None]], dim=-1)
    return replace(cloud, means=means, viewmats=torch.eye(4)[None]), object_index


def exact_view(
    cloud: Cloud, object_index: torch.Tensor, object_scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image with object weights and depth, and alphas, of the cloud scaled about the camera centre."""
    scales = object_scales[object_index, None]
    placed = replace(cloud, means=scales * cloud.means, scales=scales * cloud.scales)
    one_hot = torch.nn.functional.one_hot(object_index, NUM_OBJECTS).float()
    image, alphas, _ = rasterize(**placed.arguments(), render_mode="RGB+ED", extra_features=one_hot)
    return image[0], alphas[0, ..., 0]


def layered_views(
    cloud: Cloud, object_index: torch.Tensor, backend: str = "auto", scales=OBJECT_SCALES
) -> CompositedLayers:
    images, alphas = [], []
    for k in range(NUM_OBJECTS):
        members = object_index == k
        names = ("means", "quats", "scales", "opacities", "colors")
        part = replace(cloud, **{name: getattr(cloud, name)[members] for name in names})
        squared = part.means[:, 2:].square()
        image, alpha, _ = rasterize(**part.arguments(), render_mode="RGB+ED", extra_features=squared)
        images.append(image[0])
        alphas.append(alpha[0, ..., 0])
    images, alphas = torch.stack(images), torch.stack(alphas)
    stds = layer_depth_stds(images[..., -1], images[..., 3] / alphas.clamp_min(1e-10))
    return composite_layers(images[..., :3], alphas, images[..., -1], scales, stds, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_that_do_not_interleave_equal_the_placed_cloud(backend: str):
    cloud, object_index = slabs()
    layered = layered_views(cloud, object_index, backend)
    assert not layered.interleaved.any()
    for m, object_scales in enumerate(OBJECT_SCALES):
        image, alphas = exact_view(cloud, object_index, object_scales)
        # The whole cloud stops at transmittance 1e-4, each layer at its own.
        assert_close(layered.features[m], image[..., :3], atol=2e-4, rtol=0)
        assert_close(layered.object_weights[m], image[..., 3:-1], atol=2e-4, rtol=0)
        assert_close(layered.depth[m], image[..., -1], atol=3e-3, rtol=0)
        assert_close(layered.alphas[m], alphas, atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_those_of_the_placed_cloud(backend: str):
    cloud, object_index = slabs()
    ours, exact = cloud.with_leaves(), cloud.with_leaves()
    layered = layered_views(ours, object_index, backend)
    together = torch.cat([layered.features, layered.object_weights, layered.depth[..., None]], dim=-1)
    random_loss(together, layered.alphas).backward()
    views = [exact_view(exact, object_index, object_scales) for object_scales in OBJECT_SCALES]
    random_loss(torch.stack([image for image, _ in views]), torch.stack([alphas for _, alphas in views])).backward()
    for name, gradient in exact.gradients().items():
        assert relative_error(ours.gradients()[name], gradient) < 5e-3, name


def random_layers(dtype: torch.dtype = torch.float32, height: int = 9, width: int = 31):
    """Layers that cover parts of the image, with equal depths in places; pixels not a multiple of a block."""
    generator = torch.Generator().manual_seed(4)
    shape = (5, height, width)
    alphas = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.5)
    alphas[0, 0] = 1.0
    features = torch.rand(*shape, 3, generator=generator) * alphas[..., None]
    depths = 1 + torch.randint(0, 4, shape, generator=generator).float()
    object_scales = torch.exp(0.3 * torch.randn(6, 5, generator=generator))
    object_scales[0] = 1.0
    depth_stds = 0.1 * torch.rand(shape, generator=generator)
    return [tensor.to(dtype) for tensor in (features, alphas, depths, object_scales, depth_stds)]


def test_numba_and_torch_agree_in_value_and_gradient():
    results = []
    for backend, dtype in (("numba", torch.float32), ("torch", torch.float64)):
        features, alphas, depths, object_scales, depth_stds = random_layers(dtype)
        leaves = [tensor.requires_grad_() for tensor in (features, alphas, depths)]
        composited = composite_layers(*leaves, object_scales, depth_stds, backend=backend)
        together = torch.cat([composited.features, composited.object_weights, composited.depth[..., None]], dim=-1)
        random_loss(together, composited.alphas).backward()
        covered = (alphas > 0).detach()
        gradients = [leaf.grad[covered] for leaf in leaves]
        results.append((together, composited.alphas, composited.interleaved, gradients))
    (fast, fast_alphas, fast_interleaved, fast_gradients), (exact, alphas, interleaved, gradients) = results
    assert_close(fast.double(), exact, atol=1e-6, rtol=1e-5)
    assert_close(fast_alphas.double(), alphas, atol=1e-6, rtol=0)
    assert torch.equal(fast_interleaved, interleaved)
    assert 0 < interleaved.float().mean() < 1
    for fast_gradient, gradient in zip(fast_gradients, gradients, strict=True):
        assert relative_error(fast_gradient, gradient) < 1e-5


def test_torch_gradients_are_finite_differences():
    features, alphas, depths, object_scales, _ = random_layers(torch.float64, height=2, width=3)
    alphas = (0.8 * alphas + 0.1).requires_grad_()
    depths = (depths + 0.01 * torch.arange(5)[:, None, None]).requires_grad_()

    def outputs(features, alphas, depths):
        return composite_layers(features, alphas, depths, object_scales)[:4]

    assert torch.autograd.gradcheck(outputs, [features.requires_grad_(), alphas, depths])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_compositing_promises(backend: str):
    features, alphas, depths, object_scales, _ = random_layers()
    composited = composite_layers(features, alphas, depths, object_scales, backend=backend)
    assert composited.interleaved is None
    assert_close(composited.object_weights.sum(-1), composited.alphas)
    assert_close(composited.alphas, (1 - (1 - alphas).prod(0)).expand(6, -1, -1))
    # A factor common to all objects moves the picture away and leaves it as it is.
    doubled = composite_layers(features, alphas, depths, 2 * object_scales, backend=backend)
    assert_close(doubled.features, composited.features)
    assert_close(doubled.depth, 2 * composited.depth)
    # Of layers at the same depth, the first is in front.
    covered = (alphas[0] > 0) & (depths[0] <= depths[1:]).all(0)
    assert_close(composited.object_weights[0, ..., 0][covered], alphas[0][covered])


def test_runs_and_thread_counts_give_the_same_bits():
    results = []
    try:
        for num_threads in (1, 3, 2):
            set_num_threads(num_threads)
            features, alphas, depths, object_scales, depth_stds = random_layers(height=40, width=50)
            leaves = [tensor.requires_grad_() for tensor in (features, alphas, depths)]
            composited = composite_layers(*leaves, object_scales, depth_stds, backend="numba")
            random_loss(composited.features, composited.depth).backward()
            results.append([*composited, *(leaf.grad for leaf in leaves)])
    finally:
        set_num_threads(None)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_interpenetrating_layers_are_marked_and_wrong_only_there():
    """Slabs brought into one another are marked; away from the marks layering still agrees."""
    cloud, object_index = slabs()
    object_scales = torch.tensor([[1.5, 1.0, 1.0, 0.6]])  # slabs 0, 1 and 3 all at depth 3.0 - 3.1
    layered = layered_views(cloud, object_index, scales=object_scales)
    image, _ = exact_view(cloud, object_index, object_scales[0])
    errors = (layered.features[0] - image[..., :3]).abs().amax(-1)
    marked = layered.interleaved[0]
    assert marked.float().mean() > 0.3
    assert errors[marked].max() > 0.05
    assert errors[~marked].mean() < 0.1 * errors[marked].mean()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_nan(backend: str):
    features, alphas, depths, object_scales, _ = random_layers()
    alphas[2, 3, 4] = torch.nan
    composited = composite_layers(features, alphas, depths, object_scales, backend=backend)
    assert composited.alphas[:, 3, 4].isnan().all()
    assert math.isfinite(composited.alphas[:, 3, 5].sum())


def test_wrong_shapes_are_named():
    features, alphas, depths, object_scales, _ = random_layers()
    with pytest.raises(AssertionError, match=r"object_scales must be \[6, 5\], got \[6, 4\]"):
        composite_layers(features, alphas, depths, object_scales[:, :4])
