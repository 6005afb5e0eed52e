"""Masks by SAM 2 (Ravi et al. 2024) where the user has installed it and has its weights; neither comes with us."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from osn_gs.errors import ConfigError
from osn_gs.preprocess.mask_propagation import ids_from_masks
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.prompts import ObjectPrompt, Prompts
from osn_gs.preprocess.segmentation import check_prompts, fill_outlines, points_on_others


@dataclass(frozen=True)
class Sam2Config:
    """SAM 2 in place of the built-in propagation. Needs the package `sam2` and its weights."""

    checkpoint: Path | None = None
    """Weights (sam2.1_hiera_tiny.pt, ...); SAM 2 is used where this is given."""
    model: str = "configs/sam2.1/sam2.1_hiera_t.yaml"
    """The configuration inside the package `sam2` that belongs to the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            return
        if importlib.util.find_spec("sam2") is None:
            raise ConfigError(
                "sam2.checkpoint is given but the package sam2 is not installed: install it as its authors say "
                "(https://github.com/facebookresearch/sam2), or leave the checkpoint out."
            )
        if not self.checkpoint.is_file():
            raise ConfigError(f"sam2.checkpoint: {self.checkpoint} is no file; expected weights of SAM 2.")


def segment_with_sam2(
    images: UInt8[np.ndarray, "t h w 3"], prompts: Prompts, config: Sam2Config, progress: Progress = no_progress
) -> UInt8[np.ndarray, "t h w"]:
    """Object ids of all frames, as `segment_clip` makes them.

    SAM 2 runs from the first frame with a prompt to the end, then from there to the beginning.

    Raises:
        DatasetError: an object has no prompt that says where it is.
    """
    from sam2.build_sam import build_sam2_video_predictor  # an optional package

    check_prompts(prompts)
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    predictor = build_sam2_video_predictor(config.model, str(config.checkpoint), device=device)
    shown = [prompt for prompt in prompts.prompts if not prompt.is_empty()]
    first = min(prompt.frame for prompt in shown)
    masks = np.zeros((len(prompts.names), *images.shape[:3]), bool)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for number, image in enumerate(images):  # it reads JPEG files named by number, nothing else
            Image.fromarray(image).save(Path(folder) / f"{number:05d}.jpg", quality=97, subsampling=0)
        state = predictor.init_state(folder)
        for prompt in shown:
            _add_prompt(predictor, state, images.shape[1:3], prompts, prompt)
        done = 0
        for reverse in (False, True):
            for frame, object_ids, logits in predictor.propagate_in_video(
                state, start_frame_idx=first, reverse=reverse
            ):
                for object_id, logit in zip(object_ids, logits, strict=True):
                    masks[object_id - 1, frame] = (logit[0] > 0).cpu().numpy()
                done += 1
                progress(min(done, len(images)), len(images))
    return np.stack([ids_from_masks(masks[:, frame]) for frame in range(len(images))])


def _add_prompt(predictor: Any, state: Any, size: tuple[int, ...], prompts: Prompts, prompt: ObjectPrompt) -> None:
    where = {"inference_state": state, "frame_idx": prompt.frame, "obj_id": prompt.object_id}
    if prompt.outlines or prompt.absent:
        predictor.add_new_mask(**where, mask=fill_outlines(prompt, *size))
    outside = prompt.outside + points_on_others(prompts, prompt)
    points = prompt.inside + outside
    box = None if prompt.outlines or prompt.box is None else np.array(prompt.box, np.float32)
    if points or box is not None:
        labels = np.array([1] * len(prompt.inside) + [0] * len(outside), np.int32)
        predictor.add_new_points_or_box(
            **where,
            points=np.array(points, np.float32).reshape(-1, 2) if points else None,
            labels=labels if points else None,
            box=box,
        )
