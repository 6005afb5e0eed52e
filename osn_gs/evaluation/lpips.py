"""Perceptual distance of two images by AlexNet: LPIPS from weights the user gives, and its shift-tolerant variant.

LPIPS (Zhang et al. 2018, AlexNet, version 0.1) cannot come with us: no package ships the ImageNet weights of its
network. ST-LPIPS (Ghildyal and Liu 2022) is another network with other weights, which a small package does ship. Its
figures are NOT LPIPS and must never be compared with published LPIPS figures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.errors import ConfigError
from osn_gs.image_similarity import masked_mean

CONVOLUTION_SHAPES = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))
ALEXNET_NAMES = ("features.0", "features.3", "features.6", "features.8", "features.10")  # torchvision's
ST_NAMES = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")  # stlpips_pytorch's

# Mean and deviation of ImageNet's colours in [-1, 1], rounded as in the authors' code (the package `lpips`).
COLOUR_MEAN = (-0.030, -0.088, -0.188)
COLOUR_DEVIATION = (0.458, 0.448, 0.450)
SMALLEST_NORM = 1e-10  # theirs too: an activation of nothing but zeros has no direction

LPIPS_FILES = (
    "LPIPS needs two files: alexnet-owt-7be5be79.pth, torchvision's AlexNet trained on ImageNet, and "
    "weights/v0.1/alex.pth of the package lpips (torchmetrics has it as functional/image/lpips_models/alex.pth)."
)
ST_LPIPS_PACKAGE = "ST-LPIPS needs the package stlpips_pytorch: pip install stlpips_pytorch"
ST_LPIPS_FILE = Path("weights/vST0.0/alex_shift_tolerant.pth")


class Layer(NamedTuple):
    """One convolution of AlexNet and how much a difference in each of its channels counts."""

    weight: Float[Tensor, "channels inputs k k"]
    bias: Float[Tensor, "channels"]
    importance: Float[Tensor, "1 channels 1 1"]


@dataclass(frozen=True, eq=False)
class Lpips:
    """A perceptual distance of two images: 0 for equal ones, larger for less alike. Made by the `load_` functions.

    Works where the images are, in their dtype, and keeps no gradients.
    """

    name: str
    """What the figure is called in tables: LPIPS or ST-LPIPS."""
    layers: tuple[Layer, ...] = field(repr=False)
    shift_tolerant: bool
    """Blurs before every subsampling, as ST-LPIPS does."""

    @property
    def min_side(self) -> int:
        """The fewest rows or columns that reach the last layer."""
        return 21 if self.shift_tolerant else 31

    def __call__(
        self,
        image: Float[Tensor, "h w 3"],
        truth: Float[Tensor, "h w 3"],
        mask: Bool[Tensor, "h w"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean of `distance_map` over the pixels where `mask` is True (all without one); NaN where none is.

        The mask chooses places of the map, it blanks nothing in the images: a masked pixel still has a say in the
        distance at a pixel that counts within about 100 pixels of it, where the network sees both.

        Raises:
            ConfigError: the images have fewer than `min_side` rows or columns.
        """
        return masked_mean(self.distance_map(image, truth), mask)

    @torch.no_grad()
    def distance_map(self, image: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w"]:
        """Distance at every pixel, for values in [0, 1] (Zhang et al. 2018, eq. 1, before its mean over the image).

        Each layer's map is enlarged to the images' size, bilinearly, before they are added, as the package `lpips`
        does with `spatial=True`. The mean over all pixels is therefore near that of `spatial=False`, not equal.
        """
        height, width = image.shape[:2]
        if min(height, width) < self.min_side:
            raise ConfigError(
                f"{self.name} needs images of at least {self.min_side}x{self.min_side} pixels, got {height}x{width}."
            )
        distance = image.new_zeros(height, width)
        layers = [Layer(*(tensor.to(image) for tensor in layer)) for layer in self.layers]
        pair = _standardise(torch.stack([image, truth]))
        for layer, activations in zip(layers, _activations(pair, layers, self.shift_tolerant), strict=True):
            directions = activations / (activations.norm(dim=1, keepdim=True) + SMALLEST_NORM)
            difference = (directions[:1] - directions[1:]).square()
            coarse = (layer.importance * difference).sum(1, keepdim=True)
            distance += F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        return distance


def load_lpips(paths: Sequence[Path]) -> Lpips:
    """LPIPS from files (.safetensors, or .pth as torch writes them) that together hold all its weights.

    Names and shapes are those of torchvision's AlexNet (`features.0.weight` ...) and of version 0.1 of the package
    `lpips` (`lin0.model.1.weight` ...). Anything else in the files is ignored. Code in them is never run.

    Raises:
        ConfigError: a file is missing or unreadable, a tensor is missing, has another shape or is there twice.
    """
    return Lpips("LPIPS", _read_layers(paths, ALEXNET_NAMES, LPIPS_FILES), shift_tolerant=False)


def load_st_lpips() -> Lpips:
    """ST-LPIPS (Ghildyal and Liu, ECCV 2022; AlexNet) from the weights in the package stlpips_pytorch.

    Its figures are NOT LPIPS. Only the package's file of weights is read: its code asks for torchvision, IPython and
    torchsummary. A mask means the same as in LPIPS.

    Raises:
        ConfigError: the package is not installed, or its file is missing or broken.
    """
    package = importlib.util.find_spec("stlpips_pytorch")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(ST_LPIPS_PACKAGE)
    path = Path(package.submodule_search_locations[0]) / ST_LPIPS_FILE
    return Lpips("ST-LPIPS", _read_layers([path], ST_NAMES, ST_LPIPS_PACKAGE), shift_tolerant=True)


def _standardise(images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    return ((2 * images - 1 - images.new_tensor(COLOUR_MEAN)) / images.new_tensor(COLOUR_DEVIATION)).movedim(-1, 1)


def _activations(
    images: Float[Tensor, "n 3 h w"], layers: Sequence[Layer], shift_tolerant: bool
) -> list[Float[Tensor, "n channels rows columns"]]:
    """What AlexNet's five convolutions say after their ReLUs (Krizhevsky 2014, as torchvision has it)."""
    first, second, third, fourth, fifth = layers
    if shift_tolerant:
        activations = [_blur_pool(F.conv2d(images, first.weight, first.bias, padding=2)).relu()]
    else:
        activations = [F.conv2d(images, first.weight, first.bias, padding=2, stride=4).relu()]
    for layer, padding, pools in [(second, 2, True), (third, 1, True), (fourth, 1, False), (fifth, 1, False)]:
        inputs = _max_pool(activations[-1], shift_tolerant) if pools else activations[-1]
        activations.append(F.conv2d(inputs, layer.weight, layer.bias, padding=padding).relu())
    return activations


def _max_pool(
    activations: Float[Tensor, "n channels h w"], shift_tolerant: bool
) -> Float[Tensor, "n channels rows columns"]:
    if shift_tolerant:
        return _blur_pool(F.max_pool2d(activations, kernel_size=3, stride=1))
    return F.max_pool2d(activations, kernel_size=3, stride=2)


def _blur_pool(activations: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n channels rows columns"]:
    """Every second row and column after a blur (Zhang 2019), with a wide border so that shifts lose little there."""
    channels = activations.shape[1]
    taps = activations.new_tensor([0.25, 0.5, 0.25])
    kernel = (taps[:, None] * taps).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(activations, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)


def _read_layers(paths: Sequence[Path], convolutions: Sequence[str], advice: str) -> tuple[Layer, ...]:
    """The layers from all files together; `convolutions` are the names before .weight and .bias."""
    names = [
        Layer(f"{convolution}.weight", f"{convolution}.bias", f"lin{index}.model.1.weight")
        for index, convolution in enumerate(convolutions)
    ]
    shapes = {}
    for layer, shape in zip(names, CONVOLUTION_SHAPES, strict=True):
        shapes |= zip(layer, (shape, shape[:1], (1, shape[0], 1, 1)), strict=True)
    tensors = _read_named(paths, shapes, advice)
    return tuple(Layer(*(tensors[name] for name in layer)) for layer in names)


def _read_named(paths: Sequence[Path], shapes: Mapping[str, tuple[int, ...]], advice: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in _read_tensors(path, advice).items():
            if name not in shapes:
                continue
            if tensor.shape != shapes[name]:
                raise ConfigError(
                    f"{path}: {name} is {_by(tensor.shape)} but AlexNet's is {_by(shapes[name])}: "
                    f"weights of another network? {advice}"
                )
            if name in found:
                raise ConfigError(f"{path}: {name} was in another file already; give each file once. {advice}")
            found[name] = tensor
    missing = [name for name in shapes if name not in found]
    if missing:
        given = ", ".join(map(str, paths)) or "no files"
        raise ConfigError(f"{given}: no {', '.join(missing)} there. {advice}")
    return found


def _read_tensors(path: Path, advice: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. {advice}")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise ConfigError(f"{path}: cannot be read as weights ({type(error).__name__}). {advice}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected tensors by name. {advice}")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
