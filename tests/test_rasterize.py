"""The rasterizer: the Numba back end against dense float64 blending, and what must hold for any rasterizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rasterize_clouds import PARAMETERS, Cloud, cloud_before_camera, cloud_with_cameras, random_loss, relative_error
from torch.testing import assert_close

from osn_gs.geometry.se3 import quat_multiply
from osn_gs.rendering import numba_backend, torch_reference
from osn_gs.rendering.rasterize import rasterize
from osn_gs.threads import set_num_threads

BACKENDS = ("numba", "torch")


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes backend "torch" blend every Gaussian at every pixel: no tiles, nothing shared with the Numba code."""
    monkeypatch.setattr(torch_reference, "blend", torch_reference.blend_dense)


def render(cloud: Cloud, **options) -> tuple[torch.Tensor, torch.Tensor, dict]:
    return rasterize(**cloud.arguments(), **options)


def render_with_gradients(cloud: Cloud, **options):
    cloud = cloud.with_leaves()
    image, alphas, info = render(cloud, **options)
    info["means2d"].retain_grad()
    random_loss(image, alphas).backward()
    return image.detach(), alphas.detach(), info, cloud.gradients()


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize("num_extra", [0, 3])
def test_numba_agrees_with_dense_float64_in_value_and_gradient(rasterize_mode: str, num_extra: int):
    cloud = cloud_with_cameras(num_cameras=2, sh=True)
    extra = torch.rand(300, num_extra, generator=torch.Generator().manual_seed(1)) if num_extra else None
    backgrounds = torch.tensor([[0.2, 0.5, 0.9], [0.7, 0.1, 0.3]])
    options = {"render_mode": "RGB+ED", "rasterize_mode": rasterize_mode, "absgrad": True}
    image, alphas, info, gradients = render_with_gradients(
        cloud, backend="numba", extra_features=extra, backgrounds=backgrounds, **options
    )
    exact_image, exact_alphas, exact_info, exact_gradients = render_with_gradients(
        cloud.cast(torch.float64),
        backend="torch",
        extra_features=None if extra is None else extra.double(),
        backgrounds=backgrounds.double(),
        **options,
    )
    # A pixel where alpha is 1/255 but for rounding may differ by that much: means, not maxima.
    assert (image[..., :-1] - exact_image[..., :-1]).abs().mean() < 2e-6
    assert (image[..., -1] - exact_image[..., -1]).abs().mean() < 2e-5
    assert (alphas - exact_alphas).abs().mean() < 2e-6
    assert (info["radii"] == exact_info["radii"]).float().mean() > 0.995
    for name in PARAMETERS:
        assert relative_error(gradients[name], exact_gradients[name]) < 2e-4, name
    for attribute in ("grad", "absgrad"):
        fast, exact = (getattr(i["means2d"], attribute) for i in (info, exact_info))
        assert relative_error(fast, exact) < 2e-4, attribute


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_colors_of_numba_agree_with_float64(degree: int):
    cloud = cloud_with_cameras(num_cameras=2, sh=True)
    gradients, values = [], []
    for back_end, dtype in ((numba_backend, torch.float32), (torch_reference, torch.float64)):
        leaves = cloud.cast(dtype).with_leaves()
        values.append(back_end.sh_colors(leaves.means, leaves.colors, leaves.viewmats, degree))
        random_loss(values[-1], torch.zeros(1)).backward()
        gradients.append((leaves.means.grad, leaves.colors.grad))
    assert_close(values[0].double(), values[1], atol=2e-6, rtol=0)
    assert_close(
        gradients[0][0].double(), gradients[1][0] if degree else torch.zeros(300, 3).double(), atol=1e-5, rtol=0
    )
    assert relative_error(gradients[0][1], gradients[1][1]) < 1e-5


@pytest.mark.usefixtures("dense")
def test_numba_agrees_on_a_large_cloud_in_mean_and_quantile():
    cloud = cloud_with_cameras(count=8000, width=96, height=64, size=0.03)
    with torch.no_grad():
        image, _, _ = render(cloud, backend="numba")
        exact, _, _ = render(cloud.cast(torch.float64), backend="torch")
    errors = (image - exact).abs()
    assert errors.mean() < 5e-6
    assert errors.flatten().quantile(0.99) < 1e-5


def test_tiled_and_dense_torch_blending_agree():
    cloud = cloud_with_cameras(num_cameras=2).cast(torch.float64).with_leaves()
    projected = torch_reference.project(
        cloud.means, cloud.quats, cloud.scales, cloud.opacities, cloud.viewmats, cloud.Ks, cloud.width, cloud.height,
        near_plane=0.01, far_plane=1e10, eps2d=0.3, antialiased=False,
    )  # fmt: skip
    features = cloud.colors.expand(2, -1, -1)
    tiled = torch_reference.blend(projected, features, cloud.width, cloud.height)
    dense = torch_reference.blend_dense(projected, features, cloud.width, cloud.height)
    assert_close(tiled, dense)
    tiled_gradients = torch.autograd.grad(random_loss(*tiled), [cloud.means, cloud.colors], retain_graph=True)
    assert_close(tiled_gradients, torch.autograd.grad(random_loss(*dense), [cloud.means, cloud.colors]))


@pytest.mark.usefixtures("dense")
def test_dense_gradients_are_finite_differences():
    cloud = cloud_with_cameras(count=6, width=10, height=8, size=0.4).cast(torch.float64)

    def image(*parameters: torch.Tensor) -> torch.Tensor:
        changed = replace(cloud, **dict(zip(PARAMETERS, parameters, strict=True)))
        return torch.cat(render(changed, backend="torch", render_mode="RGB+D")[:2], dim=-1)

    leaves = [getattr(cloud, name).clone().requires_grad_() for name in PARAMETERS]
    assert torch.autograd.gradcheck(image, leaves, eps=1e-7, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("render_mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_back_ends_draw_the_same_channels(render_mode: str):
    cloud = cloud_with_cameras(count=60, num_cameras=2)
    backgrounds = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))
    images = [render(cloud, render_mode=render_mode, backgrounds=backgrounds, backend=b)[0] for b in BACKENDS]
    channels = {"RGB": 3, "D": 1, "ED": 1, "RGB+D": 4, "RGB+ED": 4}[render_mode]
    assert images[0].shape == (2, cloud.height, cloud.width, channels)
    assert (images[0] - images[1]).abs().mean() < 1e-5


def test_runs_and_thread_counts_give_the_same_bits():
    cloud = cloud_with_cameras(count=3000, width=200, height=120, num_cameras=2)
    results = []
    try:
        for num_threads in (1, 3, 3, 2):
            set_num_threads(num_threads)
            image, alphas, info, gradients = render_with_gradients(cloud, backend="numba", absgrad=True)
            results.append((image, alphas, info["means2d"].grad, info["means2d"].absgrad, *gradients.values()))
    finally:
        set_num_threads(None)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("broken", ["means", "quats", "scales", "opacities", "viewmats", "Ks"])
def test_nan_is_refused(backend: str, broken: str):
    cloud = cloud_with_cameras(count=20)
    values = getattr(cloud, broken).clone()
    values.view(-1)[0] = torch.nan
    with pytest.raises(AssertionError, match="NaN"):
        render(replace(cloud, **{broken: values}), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_colour_shows_in_its_channel(backend: str):
    cloud = cloud_before_camera([[0.0, 0, 2], [0.0, 0, 3]], [[0.2] * 3] * 2, [0.5, 0.5], [[1.0, 1, 1]] * 2)
    cloud.colors[1, 0] = torch.nan
    image, _, _ = render(cloud, backend=backend)
    assert image[0, 20, 20, 0].isnan()
    assert not image[0, 20, 20, 1].isnan()


def test_numba_refuses_a_quaternion_of_length_zero():
    cloud = cloud_with_cameras(count=20)
    cloud.quats[15] = 0
    with pytest.raises(AssertionError, match="no finite image"):
        render(cloud, backend="numba")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["none", "behind", "too near", "too far", "outside", "transparent"])
def test_nothing_to_see_is_black_and_has_zero_gradients(backend: str, case: str):
    count = 0 if case == "none" else 5
    cloud = cloud_with_cameras(count=count)
    cloud = replace(cloud, viewmats=torch.eye(4)[None], means=torch.tensor([[0.0, 0, 3]]).repeat(count, 1))
    options = {}
    if case == "behind":
        cloud.means[:, 2] = -3
    elif case == "too near":
        options["near_plane"] = 3.5
    elif case == "too far":
        options["far_plane"] = 2.5
    elif case == "outside":
        cloud.means[:, 0] = 50
    elif case == "transparent":
        cloud.opacities[:] = 0.003
    image, alphas, info, gradients = render_with_gradients(cloud, backend=backend, render_mode="RGB+ED", **options)
    assert not image.any()
    assert not alphas.any()
    assert not info["radii"].any()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_nearer_opaque_gaussian_wins(backend: str, order: list[int]):
    means, colors = [[0.0, 0, 2], [0.0, 0, 3]], [[1.0, 0, 0], [0.0, 1, 0]]
    cloud = cloud_before_camera([means[i] for i in order], [[0.5] * 3] * 2, [1.0, 1.0], [colors[i] for i in order])
    image, _, _ = render(cloud, backend=backend, render_mode="RGB+ED")
    middle = image[0, 20, 20]
    assert middle[0] > 0.99 > 0.01 > middle[1]
    assert_close(middle[3], torch.tensor(2.0), atol=0.01, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gaussian_has_the_closed_form(backend: str):
    """An isotropic Gaussian on the axis: alpha = o exp(-r^2 / (2 ((f s / z)^2 + eps2d))) at pixel centres."""
    cloud = cloud_before_camera([[0.0, 0, 2]], [[0.1] * 3], [0.8], [[1.0, 0.5, 0.25]])
    image, alphas, _ = render(cloud, backend=backend, render_mode="RGB+ED")
    centres = torch.arange(40) + 0.5 - 20
    squared_radius = centres[:, None] ** 2 + centres**2
    expected = 0.8 * torch.exp(-squared_radius / (2 * ((40 * 0.1 / 2) ** 2 + 0.3)))
    expected[expected < 1 / 255] = 0
    assert_close(alphas[0, ..., 0], expected, atol=1e-5, rtol=0)
    assert_close(image[0, ..., :3], expected[..., None] * cloud.colors[0], atol=1e-5, rtol=0)
    assert_close(image[0, ..., 3], 2.0 * (expected > 0), atol=1e-4, rtol=0)


def crossed_planes(count: int = 12) -> Cloud:
    """Two opaque sheets of Gaussians that cross in the middle: red is nearer on the left, green on the right."""
    grid = torch.linspace(-0.9, 0.9, count)
    x, y = (values.flatten() for values in torch.meshgrid(grid, grid, indexing="xy"))
    sheets = [torch.stack([x, y, 3 + slope * x], dim=-1) for slope in (0.5, -0.5)]
    colors = torch.tensor([[1.0, 0, 0], [0.0, 1, 0]]).repeat_interleave(count * count, dim=0)
    total = 2 * count * count
    return cloud_before_camera(
        torch.cat(sheets).tolist(), [[0.12, 0.12, 0.01]] * total, [0.95] * total, colors.tolist(), size=50
    )


@pytest.mark.usefixtures("dense")
def test_interpenetrating_sheets_composite_as_in_the_reference():
    cloud = crossed_planes()
    image, _, _ = render(cloud, backend="numba")
    exact, _, _ = render(cloud.cast(torch.float64), backend="torch")
    assert (image - exact).abs().mean() < 1e-5
    left, right = image[0, 25, 15], image[0, 25, 35]
    assert left[0] > 0.8 > 0.2 > left[1]
    assert right[1] > 0.8 > 0.2 > right[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaling_about_the_camera_centre_leaves_the_image_and_multiplies_depth(backend: str):
    cloud = replace(cloud_with_cameras(sh=True), viewmats=torch.eye(4)[None]).cast(torch.float32)
    scaled = replace(cloud, means=2.7 * cloud.means, scales=2.7 * cloud.scales)
    near, far = (render(c, backend=backend, render_mode="RGB+ED") for c in (cloud, scaled))
    assert (near[0][..., :3] - far[0][..., :3]).abs().mean() < 1e-5
    assert (2.7 * near[0][..., 3] - far[0][..., 3]).abs().mean() < 1e-4
    assert torch.equal(near[2]["radii"], far[2]["radii"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_turning_world_and_camera_together_changes_nothing(backend: str):
    cloud = replace(cloud_with_cameras(), viewmats=torch.eye(4)[None])
    turned = replace(
        cloud,
        means=cloud.means[:, [2, 0, 1]],  # x to y, y to z, z to x
        quats=quat_multiply(torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(300, 4), cloud.quats),
        viewmats=torch.eye(4)[[1, 2, 0, 3]][None],
    )
    images = [render(c, backend=backend)[0] for c in (cloud, turned)]
    assert (images[0] - images[1]).abs().mean() < 1e-5


def test_torch_back_end_gives_gradients_for_the_camera():
    cloud = cloud_with_cameras(count=30).cast(torch.float64)
    viewmats = cloud.viewmats.clone().requires_grad_()
    image, alphas, _ = render(replace(cloud, viewmats=viewmats), backend="torch")
    random_loss(image, alphas).backward()
    assert viewmats.grad[:, :3].abs().sum() > 0
    with pytest.raises(AssertionError, match="viewmats"):
        render(replace(cloud.cast(torch.float32), viewmats=viewmats.float()), backend="numba")


def test_wrong_shapes_are_named():
    cloud = cloud_with_cameras(count=10)
    with pytest.raises(AssertionError, match=r"quats must be \[10, 4\], got \[9, 4\]"):
        render(replace(cloud, quats=cloud.quats[1:]))
    with pytest.raises(AssertionError, match="extra_features"):
        render(cloud, render_mode="ED", extra_features=torch.zeros(10, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_band_of_spherical_harmonics_that_nobody_has_is_refused(backend):
    cloud = cloud_with_cameras(count=5, sh=True)
    cloud = replace(cloud, colors=torch.zeros(5, 25, 3), sh_degree=4)
    with pytest.raises(AssertionError, match=r"SH degree must be 0\.\.3, got 4"):
        rasterize(**cloud.arguments(), backend=backend)
