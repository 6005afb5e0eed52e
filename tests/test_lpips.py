"""LPIPS against torchmetrics' network with the same weights, ST-LPIPS against its authors' code where it is there."""

import importlib
import importlib.util
import math
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from osn_gs.errors import ConfigError
from osn_gs.evaluation.lpips import CONVOLUTION_SHAPES, ST_LPIPS_FILE, ST_NAMES, Lpips, load_lpips, load_st_lpips

LINEAR_FILES = Path(torchmetrics_lpips.__file__).parent / "lpips_models"
needs_st_lpips = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips_pytorch is not installed"
)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    """AlexNet's convolutions with random weights: nobody may ship the trained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
        )


@pytest.fixture(scope="module")
def alexnet_file(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision's file: the features' names, and a classifier that LPIPS has no use for."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    weights = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(weights | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def lpips(alexnet_file: Path) -> Lpips:
    return load_lpips([alexnet_file, LINEAR_FILES / "alex.pth"])


@pytest.fixture
def reference(features: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """torchmetrics' own network and linear weights; only its way to torchvision is replaced."""
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: features)
    return torchmetrics_lpips._LPIPS(net="alex", spatial=True)


@pytest.fixture
def st_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of weights in a stand-in for the package stlpips_pytorch, whose code fails like the real one's."""
    path = tmp_path / "stlpips_pytorch" / ST_LPIPS_FILE
    path.parent.mkdir(parents=True)
    (tmp_path / "stlpips_pytorch" / "__init__.py").write_text("import no_such_dependency\n")
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for index, (name, shape) in enumerate(zip(ST_NAMES, CONVOLUTION_SHAPES, strict=True)):
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[:1], generator=generator)
        weights[f"lin{index}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=generator)
    torch.save(weights, path)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def image_pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blotches of colour, and the same with noise that grows from the left to the right."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    truth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].movedim(0, -1).clamp(0, 1)
    noise = 0.5 * torch.randn(height, width, 3, generator=generator) * torch.linspace(0, 1, width)[:, None]
    return (truth + noise).clamp(0, 1), truth


def channels_first(image: torch.Tensor) -> torch.Tensor:
    return image.movedim(-1, 0)[None]


@pytest.mark.parametrize("size", [(96, 128), (75, 61)])
def test_lpips_equals_torchmetrics_at_every_pixel(lpips: Lpips, reference: nn.Module, size: tuple[int, int]) -> None:
    image, truth = image_pair(*size)
    expected = reference(channels_first(image), channels_first(truth), normalize=True)[0, 0]
    torch.testing.assert_close(lpips.distance_map(image, truth), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lpips(image, truth), expected.mean(), rtol=1e-4, atol=1e-6)
    mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.3
    torch.testing.assert_close(lpips(image, truth, mask), expected[mask].mean(), rtol=1e-4, atol=1e-6)
    assert expected.min() < 0.5 * expected.max(), "the pictures differ more in some places than in others"


def test_equal_images_are_no_distance_apart_and_more_noise_is_farther(lpips: Lpips) -> None:
    image, truth = image_pair(64, 80)
    assert float(lpips(truth, truth)) == 0
    assert 0 < float(lpips(truth + 0.2 * (image - truth), truth)) < float(lpips(image, truth))
    assert float(lpips(image, truth)) == float(lpips(truth, image))


def test_pixels_far_outside_the_mask_do_not_count(lpips: Lpips) -> None:
    image, truth = image_pair(40, 320)
    mask = torch.zeros(40, 320, dtype=torch.bool)
    mask[:, :150] = True
    spoiled = image.clone()
    spoiled[:, 260:] = 1 - truth[:, 260:]
    assert float(lpips(spoiled, truth)) > 1.01 * float(lpips(image, truth))
    assert float(lpips(spoiled, truth, mask)) == pytest.approx(float(lpips(image, truth, mask)), rel=1e-5)
    spoiled[:, 160:] = 1 - truth[:, 160:]  # near the mask: the network sees it from pixels that count
    assert float(lpips(spoiled, truth, mask)) != pytest.approx(float(lpips(image, truth, mask)), rel=1e-3)


def test_no_pixel_that_counts_is_no_number(lpips: Lpips) -> None:
    image, truth = image_pair(40, 48)
    assert lpips(image, truth, torch.zeros(40, 48, dtype=torch.bool)).isnan()


def test_an_image_too_small_for_alexnet_is_refused(lpips: Lpips) -> None:
    assert lpips(torch.zeros(31, 31, 3), torch.ones(31, 31, 3)).isfinite()
    with pytest.raises(ConfigError, match="LPIPS needs images of at least 31x31 pixels, got 40x30"):
        lpips(torch.zeros(40, 30, 3), torch.zeros(40, 30, 3))


def test_one_safetensors_file_may_hold_everything(lpips: Lpips, alexnet_file: Path, tmp_path: Path) -> None:
    linear = torch.load(LINEAR_FILES / "alex.pth", map_location="cpu", weights_only=True)
    path = tmp_path / "lpips.safetensors"
    save_file(torch.load(alexnet_file, weights_only=True) | linear, path)
    image, truth = image_pair(40, 48)
    assert load_lpips([path])(image, truth) == lpips(image, truth)


def load_error(*paths: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_lpips(paths)
    message = str(caught.value)
    assert "\n" not in message
    assert "alexnet-owt-7be5be79.pth" in message
    assert "weights/v0.1/alex.pth" in message
    return message


def test_half_of_the_weights_is_refused_with_the_names_of_the_other_half(alexnet_file: Path) -> None:
    assert f"{alexnet_file}: no lin0.model.1.weight, lin1.model.1.weight" in load_error(alexnet_file)
    message = load_error(LINEAR_FILES / "alex.pth")
    assert "features.0.weight, features.0.bias" in message
    assert "no lin0" not in message
    assert load_error().startswith("no files: ")
    assert "give each file once" in load_error(alexnet_file, alexnet_file)


def test_weights_of_another_network_are_refused(alexnet_file: Path) -> None:
    message = load_error(alexnet_file, LINEAR_FILES / "vgg.pth")
    assert "vgg.pth: lin1.model.1.weight is 1x128x1x1 but AlexNet's is 1x192x1x1" in message


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_without_weights_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert f"{path}: no such file" in load_error(path)
    path.write_text("404: Not Found")
    assert f"{path}: cannot be read as weights" in load_error(path)
    path.write_bytes(b"")
    assert f"{path}: cannot be read as weights" in load_error(path)


def test_something_else_than_tensors_by_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save([torch.zeros(2)], path)
    assert f"{path}: holds a list" in load_error(path)
    torch.save({"features.0.weight": "text"}, path)
    assert f"{path}: no features.0.weight" in load_error(path)


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.trace,))


def test_a_file_that_would_run_code_is_refused_before_it_does(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({"features.0.weight": RunsCode(trace)}, path)
    assert f"{path}: cannot be read as weights" in load_error(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(RunsCode(trace), protocol=2))
    load_error(path)
    assert not trace.exists()


def test_st_lpips_takes_weights_from_its_package_without_running_it(st_weights: Path) -> None:
    st_lpips = load_st_lpips()
    assert st_lpips.name == "ST-LPIPS"
    image, truth = image_pair(40, 48)
    assert float(st_lpips(truth, truth)) == 0
    distances = st_lpips.distance_map(image, truth)
    mask = torch.zeros(40, 48, dtype=torch.bool)
    mask[5:9, 7:30] = True
    assert float(st_lpips(image, truth, mask)) == pytest.approx(float(distances[5:9, 7:30].mean()))
    assert "stlpips_pytorch" not in sys.modules


def test_st_lpips_says_what_is_missing(st_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    st_weights.unlink()
    with pytest.raises(ConfigError, match=r"alex_shift_tolerant\.pth: no such file.*pip install stlpips_pytorch"):
        load_st_lpips()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="ST-LPIPS needs the package stlpips_pytorch: pip install stlpips_pytorch"):
        load_st_lpips()


def test_st_lpips_takes_images_from_21_pixels(st_weights: Path) -> None:
    st_lpips = load_st_lpips()
    assert st_lpips(torch.zeros(21, 21, 3), torch.ones(21, 21, 3)).isfinite()
    with pytest.raises(ConfigError, match="ST-LPIPS needs images of at least 21x21 pixels, got 20x40"):
        st_lpips(torch.zeros(20, 40, 3), torch.zeros(20, 40, 3))


@pytest.fixture
def st_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """Their own network; what the package imports but does not use for AlexNet is replaced by nothing."""
    for name in ("torchvision", "IPython", "torchsummary"):
        stand_in = ModuleType(name)
        stand_in.models = stand_in.embed = stand_in.summary = None
        monkeypatch.setitem(sys.modules, name, stand_in)
    theirs = importlib.import_module("stlpips_pytorch.stlpips")
    yield theirs.LPIPS(net="alex", variant="shift_tolerant", spatial=True, verbose=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "stlpips_pytorch"]:
        del sys.modules[name]  # nobody else shall find it made with stand-ins


@needs_st_lpips
@pytest.mark.parametrize("size", [(96, 128), (75, 61)])
def test_st_lpips_equals_its_authors_code(st_reference: nn.Module, size: tuple[int, int]) -> None:
    image, truth = image_pair(*size)
    expected = st_reference(channels_first(image), channels_first(truth), normalize=True)[0, 0].detach()
    torch.testing.assert_close(load_st_lpips().distance_map(image, truth), expected, rtol=1e-4, atol=1e-6)
