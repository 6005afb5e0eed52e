"""Rasterization of 3D Gaussians: gsplat's contract on CUDA and on the CPU."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.rendering import torch_reference
from osn_gs.threads import numba_is_installed

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]
Backend = Literal["auto", "gsplat", "numba", "torch"]


def rasterize(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, "n"],
    colors: Float[Tensor, "n d"] | Float[Tensor, "n bases 3"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    render_mode: RenderMode = "RGB",
    backgrounds: Float[Tensor, "c d"] | None = None,
    rasterize_mode: RasterizeMode = "classic",
    absgrad: bool = False,
    extra_features: Float[Tensor, "n e"] | None = None,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "c h w x"], Float[Tensor, "c h w 1"], dict[str, Any]]:
    """Render N Gaussians from C pinhole cameras: `gsplat.rasterization` (1.5.3) for one scene, on any device.

    Args:
        means, quats, scales, opacities: Gaussians in the world frame; wxyz quaternions of any length, standard
            deviations along the principal axes, opacities in [0, 1].
        colors: values per Gaussian, or with `sh_degree` the coefficients of spherical harmonics, of which
            the bands up to `sh_degree` count; the colour is then max(SH + 0.5, 0).
        viewmats, Ks: rigid world-to-camera transforms (OpenCV axes) and intrinsics in pixels, centres at +0.5.
        near_plane, far_plane: Gaussians whose centre lies outside are not drawn.
        eps2d: added to the variances in the image, in square pixels, so that none falls between the pixels.
        render_mode: "RGB" colours, "D" accumulated depth sum_i w_i z_i, "ED" expected depth D / alpha (z-depth,
            0 where nothing was hit); depth is the last channel of "RGB+D" and "RGB+ED".
        backgrounds: colours behind everything, black without; extra features and depth have none.
        rasterize_mode: "antialiased" takes back the light that `eps2d` adds (Mip-Splatting).
        absgrad: backward also leaves the sum over pixels of |d loss / d means2d| in `info["means2d"].absgrad`.
        extra_features: more channels blended like colours (object weights, say), between colour and depth.
            Not with "D" and "ED", which show depth alone.
        backend: "auto" is gsplat for CUDA tensors; on the CPU Numba for float32 where it is installed, else
            torch. "torch" also gives gradients for the cameras.

    Returns:
        The image (premultiplied, over `backgrounds`), the alphas, and `info` with what gsplat's strategies read
        (packed=False): means2d [C, N, 2], radii [C, N, 2] (0: not visible), depths, conics, opacities, width,
        height, n_cameras, gaussian_ids (None).

    Raises:
        AssertionError: a shape is wrong, or a Gaussian or camera contains NaN: a picture without the broken
            Gaussians would look like a result.
    """
    _check_inputs(means, quats, scales, opacities, colors, viewmats, Ks, sh_degree, render_mode, extra_features)
    backend = _choose_backend(means) if backend == "auto" else backend
    if backend == "gsplat":
        return _rasterize_with_gsplat(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
            sh_degree, render_mode, backgrounds, rasterize_mode, absgrad, extra_features,
        )  # fmt: skip
    if backend == "numba":
        assert means.dtype == torch.float32, f"the Numba back end is float32 only, means are {means.dtype}"
        from osn_gs.rendering import numba_backend as kernels
    else:
        kernels = torch_reference

    projected = kernels.project(
        means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
        antialiased=rasterize_mode == "antialiased",
    )  # fmt: skip
    features = _features(kernels, means, colors, viewmats, sh_degree, render_mode, extra_features, projected.depths)
    image, alphas = kernels.blend(projected, features, width, height, absgrad)
    image = _finish(image, alphas, backgrounds, render_mode)
    info = {**projected._asdict(), "width": width, "height": height, "n_cameras": len(viewmats), "gaussian_ids": None}
    return image, alphas, info


def _check_inputs(
    means, quats, scales, opacities, colors, viewmats, Ks, sh_degree, render_mode, extra_features
) -> None:
    n, c = len(means), len(viewmats)
    shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "viewmats": (c, 4, 4)}
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "viewmats": viewmats, "Ks": Ks}
    for name, shape in (shapes | {"Ks": (c, 3, 3)}).items():
        assert tensors[name].shape == shape, f"{name} must be {list(shape)}, got {list(tensors[name].shape)}"
        assert not tensors[name].isnan().any(), f"{name} contain NaN"
    assert colors.ndim == (2 if sh_degree is None else 3), f"colors are {list(colors.shape)} with sh_degree {sh_degree}"
    assert len(colors) == n, f"{len(colors)} colors for {n} Gaussians"
    assert render_mode in ("RGB", "D", "ED", "RGB+D", "RGB+ED"), render_mode
    assert extra_features is None or "RGB" in render_mode, f"extra_features cannot be drawn in mode {render_mode}"


def _choose_backend(means: Tensor) -> Backend:
    if means.is_cuda:
        return "gsplat"
    return "numba" if means.dtype == torch.float32 and numba_is_installed() else "torch"


def _features(
    kernels, means, colors, viewmats, sh_degree, render_mode, extra_features, depths
) -> Float[Tensor, "c n x"]:
    """The channels to blend, in the order of the output."""
    num_cameras = len(viewmats)
    channels = []
    if "RGB" in render_mode and sh_degree is not None:
        channels.append(kernels.sh_colors(means, colors, viewmats, sh_degree))
    elif "RGB" in render_mode:
        channels.append(colors.expand(num_cameras, -1, -1))
    if extra_features is not None:
        channels.append(extra_features.expand(num_cameras, -1, -1))
    if render_mode != "RGB":
        channels.append(depths[..., None])
    return torch.cat(channels, dim=-1)


def _finish(image, alphas, backgrounds, render_mode) -> Float[Tensor, "c h w x"]:
    """Put the background behind the colours and turn accumulated into expected depth."""
    if backgrounds is not None and "RGB" in render_mode:
        image = image + _padded(backgrounds, image.shape[-1])[:, None, None] * (1 - alphas)
    if "ED" in render_mode:
        image = torch.cat([image[..., :-1], image[..., -1:] / alphas.clamp_min(1e-10)], dim=-1)
    return image


def _padded(backgrounds: Float[Tensor, "c d"], num_channels: int) -> Float[Tensor, "c x"]:
    return torch.nn.functional.pad(backgrounds, (0, num_channels - backgrounds.shape[-1]))


def _rasterize_with_gsplat(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
    sh_degree, render_mode, backgrounds, rasterize_mode, absgrad, extra_features,
):  # fmt: skip
    """gsplat draws either SH or plain channels; with extra features beside SH, the colours are evaluated here."""
    assert torch.cuda.is_available(), "backend 'gsplat' needs a CUDA device; use backend='auto'"
    import gsplat  # its first use compiles CUDA code, so never at import

    if extra_features is not None:
        if sh_degree is None:
            colors = torch.cat([colors, extra_features], dim=-1)
        else:
            shaded = torch_reference.sh_colors(means, colors, viewmats, sh_degree)
            colors = torch.cat([shaded, extra_features.expand(len(viewmats), -1, -1)], dim=-1)
            sh_degree = None
        backgrounds = None if backgrounds is None else _padded(backgrounds, colors.shape[-1])
    return gsplat.rasterization(
        means,
        quats,
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        width,
        height,
        near_plane=near_plane,
        far_plane=far_plane,
        eps2d=eps2d,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=backgrounds,
        render_mode=render_mode,
        absgrad=absgrad,
        rasterize_mode=rasterize_mode,
    )
