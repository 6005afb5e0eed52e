"""The rasterizer against gsplat: its own torch reference on the CPU, its CUDA kernels where there is a GPU."""

from __future__ import annotations

import inspect
import sys
import types
from dataclasses import replace

import gsplat
import gsplat.rendering
import pytest
import torch
from gsplat.cuda import _torch_impl, _wrapper
from gsplat.strategy import DefaultStrategy
from rasterize_clouds import PARAMETERS, Cloud, cloud_with_cameras, random_loss, relative_error

from osn_gs.rendering.projected_gaussians import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from osn_gs.rendering.rasterize import rasterize


@pytest.fixture
def gsplat_reference(monkeypatch: pytest.MonkeyPatch):
    """gsplat's `_rasterization`, the CUDA-only functions below it replaced by CPU ones.

    Projection, covariances, spherical harmonics, tiles and the blending sum are gsplat's own code.
    """

    def isect_tiles(means2d, radii, depths, tile_size, tile_width, tile_height, **_):
        return _torch_impl._isect_tiles(means2d, radii, depths, tile_size, tile_width, tile_height)

    def spherical_harmonics(degree, directions, coefficients, masks=None):
        return _torch_impl._spherical_harmonics(degree, directions, coefficients)

    nerfacc = types.ModuleType("nerfacc")
    nerfacc.render_weight_from_alpha = _weights_along_rays
    nerfacc.accumulate_along_rays = _sum_along_rays
    monkeypatch.setitem(sys.modules, "nerfacc", nerfacc)
    monkeypatch.setattr(_wrapper, "rasterize_to_indices_in_range", _blended_pairs)
    monkeypatch.setattr(gsplat.rendering, "isect_tiles", isect_tiles)
    monkeypatch.setattr(gsplat.rendering, "isect_offset_encode", _torch_impl._isect_offset_encode)
    monkeypatch.setattr(gsplat.rendering, "spherical_harmonics", spherical_harmonics)
    return gsplat.rendering._rasterization


def _weights_along_rays(alphas, ray_indices, n_rays):
    """alpha times the product of 1 - alpha before it on the same ray; pairs are sorted by ray."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    place = torch.arange(len(alphas)) - (counts.cumsum(0) - counts)[ray_indices]
    padded = torch.zeros(n_rays, int(counts.max())).index_put((ray_indices, place), alphas)
    before = torch.cumprod(torch.cat([torch.ones(n_rays, 1), 1 - padded[:, :-1]], dim=1), dim=1)[ray_indices, place]
    return alphas * before, before


def _sum_along_rays(weights, values=None, ray_indices=None, n_rays=None):
    values = weights[:, None] if values is None else weights[:, None] * values
    return torch.zeros(n_rays, values.shape[1]).index_add(0, ray_indices, values)


@torch.no_grad()
def _blended_pairs(first, last, transmittances, means2d, conics, opacities, width, height, tile_size, offsets, ids):
    """The (Gaussian, pixel) pairs that gsplat's CUDA kernel blends, for one camera."""
    bounds = [*offsets.flatten().tolist(), len(ids)]
    gaussians, pixels = [], []
    for y in range(height):
        for x in range(width):
            tile = (y // tile_size) * offsets.shape[-1] + x // tile_size
            candidates = ids[bounds[tile] : bounds[tile + 1]].long()
            dx, dy = (means2d[0, candidates] - torch.tensor([x + 0.5, y + 0.5])).unbind(-1)
            xx, xy, yy = conics[0, candidates].unbind(-1)
            sigma = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
            alphas = (opacities[0, candidates] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
            touches = (sigma >= 0) & (alphas >= ALPHA_MIN)
            after = transmittances[0, y, x] * torch.cumprod(1 - alphas[touches], dim=0)
            gaussians.append(candidates[touches][after > TRANSMITTANCE_MIN])
            pixels += [y * width + x] * len(gaussians[-1])
    return torch.cat(gaussians), torch.tensor(pixels), torch.zeros(len(pixels), dtype=torch.long)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
def test_value_and_gradient_agree_with_gsplats_own_reference(gsplat_reference, rasterize_mode: str, backend: str):
    cloud = cloud_with_cameras(count=200, width=50, height=36, sh=True)
    options = {
        "render_mode": "RGB+ED",
        "rasterize_mode": rasterize_mode,
        "backgrounds": torch.tensor([[0.2, 0.5, 0.9]]),
    }
    theirs, ours = cloud.with_leaves(), cloud.with_leaves()
    their_image, their_alphas, their_info = gsplat_reference(**theirs.arguments(), **options, batch_per_iter=10**6)
    image, alphas, info = rasterize(**ours.arguments(), **options, backend=backend)
    assert (image - their_image)[..., :3].abs().mean() < 1e-5
    assert (image - their_image)[..., 3].abs().mean() < 5e-5
    assert (alphas - their_alphas).abs().mean() < 1e-5
    visible = (info["radii"] > 0).all(-1)
    for name in ("means2d", "conics", "depths"):
        assert relative_error(info[name][visible], their_info[name][visible]) < 1e-5, name

    random_loss(image, alphas).backward()
    random_loss(their_image, their_alphas).backward()
    for name in PARAMETERS:
        assert relative_error(ours.gradients()[name], theirs.gradients()[name]) < 1e-3, name


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_radii_agree_with_gsplats_projection(backend: str):
    """Opaque Gaussians: gsplat's torch projection has no opacity-aware bound, its CUDA one has (and so have we)."""
    cloud = replace(cloud_with_cameras(count=2000, num_cameras=2), opacities=torch.ones(2000))
    _, _, info = rasterize(**cloud.arguments(), backend=backend)
    covariances, _ = _torch_impl._quat_scale_to_covar_preci(cloud.quats, cloud.scales, True, False)
    radii, _, _, _, _ = _torch_impl._fully_fused_projection(
        cloud.means, covariances, cloud.viewmats, cloud.Ks, cloud.width, cloud.height
    )
    assert info["radii"].dtype == radii.dtype
    differences = (info["radii"] - radii).abs()
    assert (differences == 0).float().mean() > 0.99  # sqrt(2 ln 255) = 3.3290 against 3.33, and ceil
    assert ((info["radii"] > 0) == (radii > 0)).all(-1).float().mean() > 0.998


@pytest.mark.parametrize("absgrad", [False, True])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_default_strategy_reads_what_it_needs(backend: str, absgrad: bool):
    cloud = cloud_with_cameras(count=100, num_cameras=2).with_leaves()
    params = {name: getattr(cloud, name) for name in PARAMETERS}
    optimizers = {name: torch.optim.Adam([value]) for name, value in params.items()}
    strategy = DefaultStrategy(absgrad=absgrad)
    state = strategy.initialize_state()
    image, alphas, info = rasterize(**cloud.arguments(), absgrad=absgrad, backend=backend)
    strategy.step_pre_backward(params, optimizers, state, 0, info)
    random_loss(image, alphas).backward()
    strategy.step_post_backward(params, optimizers, state, 0, info, packed=False)
    visible = (info["radii"] > 0).all(-1).sum(0)
    assert torch.equal(state["count"], visible.float())
    gradients = info["means2d"].absgrad if absgrad else info["means2d"].grad
    in_screen = gradients * torch.tensor([cloud.width / 2, cloud.height / 2]) * 2
    torch.testing.assert_close(state["grad2d"], in_screen.norm(dim=-1).sum(0))
    if absgrad:
        assert (gradients >= info["means2d"].grad.abs() - 1e-4).all()


class _GsplatCall:
    """Stands in for `gsplat.rasterization` and keeps the arguments, bound to the real signature."""

    def __init__(self) -> None:
        self.signature = inspect.signature(gsplat.rasterization)
        self.arguments: dict = {}

    def __call__(self, *args, **kwargs):
        bound = self.signature.bind(*args, **kwargs)  # raises on an argument that gsplat does not have
        bound.apply_defaults()
        self.arguments = bound.arguments
        return "image", "alphas", {}


@pytest.fixture
def gsplat_call(monkeypatch: pytest.MonkeyPatch) -> _GsplatCall:
    call = _GsplatCall()
    monkeypatch.setattr(gsplat, "rasterization", call)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return call


def test_gsplat_gets_sh_coefficients_as_they_are(gsplat_call: _GsplatCall):
    cloud = cloud_with_cameras(count=10, sh=True, num_cameras=2)
    backgrounds = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    options = {"near_plane": 0.1, "far_plane": 50.0, "eps2d": 0.2, "render_mode": "RGB+ED", "absgrad": True}
    options |= {"rasterize_mode": "antialiased", "backgrounds": backgrounds}
    image, alphas, _ = rasterize(**cloud.arguments(), **options, backend="gsplat")
    assert (image, alphas) == ("image", "alphas")
    for name, value in (cloud.arguments() | options).items():
        assert gsplat_call.arguments[name] is value, name
    assert gsplat_call.arguments["packed"] is False


def test_gsplat_gets_colours_beside_extra_features(gsplat_call: _GsplatCall):
    cloud = cloud_with_cameras(count=10, sh=True, num_cameras=2)
    extra = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    backgrounds = torch.ones(2, 3)
    rasterize(**cloud.arguments(), extra_features=extra, backgrounds=backgrounds, backend="gsplat")
    assert gsplat_call.arguments["sh_degree"] is None
    colors = gsplat_call.arguments["colors"]
    assert colors.shape == (2, 10, 7)
    assert torch.equal(colors[1, :, 3:], extra)
    directions = cloud.means - torch.inverse(cloud.viewmats)[1, :3, 3]
    expected = (_torch_impl._spherical_harmonics(3, directions, cloud.colors) + 0.5).clamp_min(0)
    torch.testing.assert_close(colors[1, :, :3], expected)
    assert torch.equal(gsplat_call.arguments["backgrounds"], torch.tensor([[1.0, 1, 1, 0, 0, 0, 0]] * 2))


def test_gsplat_without_a_gpu_is_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "gsplat", None)  # importing it now raises
    with pytest.raises(AssertionError, match="needs a CUDA device"):
        rasterize(**cloud_with_cameras(count=5).arguments(), backend="gsplat")


def test_auto_takes_numba_for_float32_and_torch_for_the_rest(monkeypatch: pytest.MonkeyPatch):
    cloud = cloud_with_cameras(count=30)

    def same(a: Cloud, backend: str) -> bool:
        auto, chosen = (rasterize(**a.arguments(), backend=b)[0] for b in ("auto", backend))
        return torch.equal(auto, chosen)

    assert same(cloud, "numba")
    assert same(cloud.cast(torch.float64), "torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert same(cloud, "torch")
    assert not same(cloud, "numba")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
def test_cuda_agrees_with_numba_in_value_and_gradient(rasterize_mode: str):
    cloud = cloud_with_cameras(count=3000, width=200, height=120, sh=True)
    extra = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1))
    options = {"render_mode": "RGB+ED", "rasterize_mode": rasterize_mode, "absgrad": True}
    results = []
    for device in ("cpu", "cuda"):
        tensors = {k: v.to(device) for k, v in cloud.arguments().items() if isinstance(v, torch.Tensor)}
        leaves = replace(cloud, **tensors).with_leaves()
        image, alphas, info = rasterize(**leaves.arguments(), **options, extra_features=extra.to(device))
        info["means2d"].retain_grad()
        random_loss(image.cpu(), alphas.cpu()).backward()
        gradients = {name: gradient.cpu() for name, gradient in leaves.gradients().items()}
        results.append((image.detach().cpu(), gradients, info["means2d"].absgrad.cpu()))
    (image, gradients, absgrad), (cuda_image, cuda_gradients, cuda_absgrad) = results
    assert (image - cuda_image).abs().mean() < 1e-5
    for name in PARAMETERS:
        assert relative_error(cuda_gradients[name], gradients[name]) < 1e-3, name
    assert relative_error(cuda_absgrad, absgrad) < 1e-3
