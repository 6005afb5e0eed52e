"""Pictures of a run as PNG files: colour-mapped depth and object ids, captioned grids, the valid set plotted.

Images are uint8 RGB tensors [h, w, 3]. Nothing here touches matplotlib's global state, so threads may draw at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

from osn_gs.files import write_bytes_atomic

# Object 0, the background, is grey; the others take colours that colour-blind people tell apart (P. Tol's "bright"
# set and two of his "vibrant" one), again from the first when there are more than eight.
BACKGROUND_COLOR = (200, 200, 200)
OBJECT_COLORS = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (102, 204, 238),
    (170, 51, 119),
    (238, 119, 51),
    (0, 153, 136),
)
DEPTH_COLORMAP = "magma_r"  # near is bright
NO_DEPTH_COLOR = (128, 148, 158)  # a blue-grey that the colour map does not contain

GRID_GAP = 4  # pixels between the pictures of a grid
CAPTION_HEIGHT = 22  # pixels
CAPTION_FILL = 0.94  # of an image's width at most
CAPTION_FONT_SIZE = 10  # points at PIXELS_PER_INCH
PIXELS_PER_INCH = 100
PLOT_PIXELS_PER_INCH = 130


def write_png(path: Path, image: UInt8[Tensor, "h w 3"]) -> None:
    """Write an RGB image, whole or not at all."""
    encoded_well, encoded = cv2.imencode(".png", cv2.cvtColor(image.cpu().numpy(), cv2.COLOR_RGB2BGR))
    assert encoded_well, f"OpenCV could not encode an image of shape {tuple(image.shape)}"
    write_bytes_atomic(path, encoded.tobytes())


def to_uint8(rgb: Float[Tensor, "h w 3"]) -> UInt8[Tensor, "h w 3"]:
    """Colours in [0, 1], clamped to it and rounded to bytes."""
    return (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def depth_range(depths: Float[Tensor, "*batch h w"]) -> tuple[float, float]:
    """Near and far of the middle 96 % of the depths that are finite and positive, for `color_depth`; (0, 1) for none.

    One range for several pictures makes their colours comparable.
    """
    seen = depths[torch.isfinite(depths) & (depths > 0)].detach().cpu().numpy()
    if seen.size == 0:
        return 0.0, 1.0
    near, far = np.quantile(seen, [0.02, 0.98])
    return float(near), float(far)


def color_depth(depth: Float[Tensor, "h w"], near: float, far: float) -> UInt8[Tensor, "h w 3"]:
    """Depth as colours, bright at `near` and dark at `far`; blue-grey where it is 0 or not finite."""
    values = depth.detach().cpu().numpy()
    seen = np.isfinite(values) & (values > 0)
    position = np.clip((np.where(seen, values, near) - near) / max(far - near, 1e-12), 0, 1)
    colors = matplotlib.colormaps[DEPTH_COLORMAP](position, bytes=True)[..., :3]
    return torch.from_numpy(np.where(seen[..., None], colors, np.uint8(NO_DEPTH_COLOR)))


def color_ids(object_ids: Int[Tensor, "h w"]) -> UInt8[Tensor, "h w 3"]:
    """Object ids as colours: the background grey, every object its own."""
    ids = object_ids.detach().cpu().long()
    palette = torch.tensor([BACKGROUND_COLOR, *OBJECT_COLORS], dtype=torch.uint8)
    return palette[torch.where(ids == 0, 0, 1 + (ids - 1) % len(OBJECT_COLORS))]


def image_grid(
    rows: Sequence[Sequence[UInt8[Tensor, "h w 3"]]], captions: Sequence[Sequence[str]] | None = None
) -> UInt8[Tensor, "grid_h grid_w 3"]:
    """Rows of images on white, each image under its caption; the images of a row have one size.

    Rows that are not as wide as the widest are filled with white.
    """
    strips = []
    for index, row in enumerate(rows):
        images = [image.cpu() for image in row]
        if captions is not None:
            width = images[0].shape[1]
            strips.append(_side_by_side([_caption(text, width) for text in captions[index]]))
        strips.append(_side_by_side(images))
        strips.append(torch.full((GRID_GAP, strips[-1].shape[1], 3), 255, dtype=torch.uint8))
    widest = max(strip.shape[1] for strip in strips)
    return torch.cat([_filled_to(widest, strip) for strip in strips[:-1]])


def _filled_to(width: int, strip: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "h width 3"]:
    missing = torch.full((strip.shape[0], width - strip.shape[1], 3), 255, dtype=torch.uint8)
    return torch.cat([strip, missing], dim=1)


def _side_by_side(images: list[UInt8[Tensor, "h w 3"]]) -> UInt8[Tensor, "h row_w 3"]:
    gap = torch.full((images[0].shape[0], GRID_GAP, 3), 255, dtype=torch.uint8)
    return torch.cat([part for image in images for part in (image, gap)][:-1], dim=1)


def _caption(text: str, width: int) -> UInt8[Tensor, "caption_h w 3"]:
    """Black text on white, centred, made smaller where it would not fit."""
    figure = Figure(figsize=(width / PIXELS_PER_INCH, CAPTION_HEIGHT / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    label = figure.text(0.5, 0.45, text, ha="center", va="center", fontsize=CAPTION_FONT_SIZE)
    excess = label.get_window_extent().width / (CAPTION_FILL * width)
    if excess > 1:
        label.set_fontsize(CAPTION_FONT_SIZE / excess)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())


ORACLE_COLOR, LEARNED_COLOR = "#b4bac6", "#2f6fb5"
CONTACT_COLOR, TRUTH_COLOR = "#e8891c", "#c1121f"
FRAME_COLOR = "#8a8f98"
CONTACT_STYLE = {  # hollow, so that the truth shows inside where the two are close
    "label": "contact configuration",
    "linestyle": "",
    "marker": "D",
    "markersize": 10,
    "markeredgewidth": 2,
    "markeredgecolor": CONTACT_COLOR,
    "markerfacecolor": "none",
}
TRUTH_STYLE = {
    "label": "true scales",
    "linestyle": "",
    "marker": "*",
    "markersize": 13,
    "markeredgecolor": "white",
    "markerfacecolor": TRUTH_COLOR,
}
DOT_STYLE = {"linestyle": "", "marker": "o", "markeredgewidth": 0}
RANGE_STYLE = {"color": FRAME_COLOR, "linestyle": "--", "linewidth": 0.9}
VIEW_MARGIN = 0.08  # of what is drawn, in log scale


@dataclass(frozen=True)
class _Mark:
    """One configuration to be marked: the scales of the drawn objects, and matplotlib's style of the mark."""

    object_scales: np.ndarray
    color: str
    style: dict[str, Any]


def plot_valid_set(
    samples: Float[Tensor, "n k"],
    oracle_valid: Float[Tensor, "m k"],
    truth: Float[Tensor, "k"] | None,
    contact: Float[Tensor, "k"] | None,
    ranges: Float[Tensor, "k 2"],
    names: Sequence[str],
    path: Path,
) -> None:
    """Draw the learned set over the oracle's: every pair of objects, and every object's scale by itself.

    `samples` are object scales drawn from the learned set, `oracle_valid` drawn from the set that the occlusions
    allow; `truth` and `contact` are single configurations to mark. `ranges` are the initial scale ranges, dashed where
    they come into view. The background's scale (column 0) is fixed and not drawn. Axes are logarithmic.
    """
    learned, oracle, bounds = (_drawn_objects(values) for values in (samples, oracle_valid, ranges.T))
    marks = []
    if contact is not None:
        marks.append(_Mark(_drawn_objects(contact), CONTACT_COLOR, CONTACT_STYLE))
    if truth is not None:
        marks.append(_Mark(_drawn_objects(truth), TRUTH_COLOR, TRUTH_STYLE))
    drawn = np.concatenate([learned, oracle, *(mark.object_scales[None] for mark in marks)])
    limits = [_view_limits(scales) for scales in (drawn if len(drawn) else bounds).T]

    num_drawn = len(limits)
    figure, panels = _square_panels(num_drawn, legend_below=num_drawn == 1)
    for row in range(num_drawn):
        for column in range(num_drawn):
            panel = panels[row, column]
            if column > row:
                panel.set_axis_off()
                continue
            panel.set(xscale="log", xlim=limits[column])
            _style_scale_axis(panel.xaxis, names[column + 1] if row == num_drawn - 1 else None)
            _draw_range(panel.axvline, bounds[:, column], limits[column])
            if column == row:
                _draw_distribution(panel, learned[:, row], oracle[:, row], limits[row])
                for mark in marks:
                    panel.axvline(mark.object_scales[row], color=mark.color, linewidth=1.6)
            else:
                panel.set(yscale="log", ylim=limits[row])
                _style_scale_axis(panel.yaxis, names[row + 1] if column == 0 else None)
                _draw_range(panel.axhline, bounds[:, row], limits[row])
                _draw_pair(panel, learned[:, [column, row]], oracle[:, [column, row]])
                for mark in marks:
                    panel.plot(mark.object_scales[column], mark.object_scales[row], **mark.style)
            panel.spines[:].set_color(FRAME_COLOR)
            panel.tick_params(color=FRAME_COLOR, labelsize=9)
    figure.legend(
        handles=_legend_handles(marks),
        title="object scales, background = 1",
        loc="upper right" if num_drawn > 1 else "lower center",
        frameon=False,
        alignment="left",
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PLOT_PIXELS_PER_INCH)
    write_bytes_atomic(path, buffer.getvalue())


def _square_panels(num_drawn: int, legend_below: bool) -> tuple[Figure, np.ndarray]:
    """A figure with n x n square panels, fewer of them larger, and room for labels to the left and below.

    The margins are set in inches: matplotlib's own layout takes seconds for many panels.
    """
    left, right, top, bottom = 0.75, 0.15, 0.15, 1.7 if legend_below else 0.6
    panels_inches = max(1.6, 3.6 - 0.4 * num_drawn) * num_drawn
    width, height = left + panels_inches + right, bottom + panels_inches + top
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, wspace=0.08, hspace=0.08)
    return figure, figure.subplots(num_drawn, num_drawn, squeeze=False)


def _drawn_objects(scales: Float[Tensor, "*n k"]) -> np.ndarray:
    return scales[..., 1:].detach().cpu().double().numpy()


def _view_limits(scales: np.ndarray) -> tuple[float, float]:
    lo, hi = np.log(scales.min()), np.log(scales.max())
    margin = max(VIEW_MARGIN * (hi - lo), 0.01)
    return float(np.exp(lo - margin)), float(np.exp(hi + margin))


def _draw_distribution(panel: Axes, learned: np.ndarray, oracle: np.ndarray, limits: tuple[float, float]) -> None:
    """Shares of the draws over one object's scale; the vertical axis says nothing more and has no ticks."""
    bins = np.geomspace(*limits, 41)
    for scales, style in (
        (oracle, {"color": ORACLE_COLOR, "histtype": "stepfilled"}),
        (learned, {"color": LEARNED_COLOR, "histtype": "step", "linewidth": 1.6}),
    ):
        panel.hist(scales, bins=bins, weights=np.full(len(scales), 1 / max(len(scales), 1)), **style)
    panel.set_yticks([])
    panel.spines[["left", "top", "right"]].set_visible(False)


def _draw_pair(panel: Axes, learned: np.ndarray, oracle: np.ndarray) -> None:
    panel.plot(*oracle.T, **DOT_STYLE, color=ORACLE_COLOR, markersize=3.8)
    panel.plot(*learned.T, **DOT_STYLE, color=LEARNED_COLOR, markersize=2.2, alpha=0.55)


def _draw_range(draw_line: Callable[..., Line2D], bounds: np.ndarray, limits: tuple[float, float]) -> None:
    for bound in bounds:
        if limits[0] <= bound <= limits[1]:
            draw_line(bound, **RANGE_STYLE)


def _style_scale_axis(axis: Axis, name: str | None) -> None:
    """Few, plain ticks on a log axis, named and numbered where it stands at the figure's edge."""
    lo, hi = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if hi > 4 * lo else MaxNLocator(4))
    axis.set_minor_locator(NullLocator())
    if name is None:
        axis.set_major_formatter(NullFormatter())
    else:
        axis.set_major_formatter(FuncFormatter(lambda scale, _: f"{scale:g}"))
        axis.set_label_text(name)


def _legend_handles(marks: list[_Mark]) -> list[Line2D]:
    return [
        Line2D([], [], **DOT_STYLE, color=ORACLE_COLOR, markersize=8, label="allowed by occlusions (oracle)"),
        Line2D([], [], **DOT_STYLE, color=LEARNED_COLOR, markersize=5, label="learned set (scale network)"),
        *(Line2D([], [], **mark.style) for mark in marks),
        Line2D([], [], label="initial range", **RANGE_STYLE),
    ]
