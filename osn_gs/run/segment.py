"""`tools/segment.py`: masks for those who have none, on a page in the browser or from a file of prompts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as ProgressBars

from osn_gs.config import parse_config
from osn_gs.errors import ConfigError
from osn_gs.preprocess.frames import FramesConfig, load_frames
from osn_gs.preprocess.indexed_png import mask_names, write_masks
from osn_gs.preprocess.progress import Progress
from osn_gs.preprocess.prompts import PROMPTS_FILE, read_prompts, write_prompts
from osn_gs.preprocess.sam2_segmentation import Sam2Config, segment_with_sam2
from osn_gs.preprocess.segmentation import segment_clip
from osn_gs.run.serve import LOOPBACK, address, start_server
from osn_gs.viewer.annotation import AnnotationPage
from osn_gs.viewer.annotation_session import AnnotationSession, Segment

PROGRAM = "python tools/segment.py"


@dataclass(frozen=True)
class SegmentConfig:
    """Make masks of a clip's objects from boxes, outlines and points in a few frames.

    Without --prompts a page opens in the browser (its address is printed); what is said there is kept in
    OUT/prompts.json at once. OUT then holds one indexed PNG a frame, named as the images or by the number in the
    video, for `python tools/prepare.py --masks OUT`.
    """

    out: Path | None = None
    """Folder for the masks and prompts.json."""
    prompts: Path | None = None
    """Make masks from this file of prompts, without a page."""
    frames: Annotated[FramesConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=FramesConfig)
    sam2: Sam2Config = field(default_factory=Sam2Config)
    host: str = LOOPBACK
    """Address the page is served at; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port the page is served at; the next free one where it is taken."""


def segment_from_arguments(arguments: list[str]) -> int:
    """Parse the command line and make masks; the exit code of the tool."""
    config = parse_config(SegmentConfig, arguments, PROGRAM)
    console = Console(soft_wrap=True, highlight=False)
    folder = _masks_folder(config)
    with _progress_bar(console, "frames") as progress:
        images, record = load_frames(config.frames, progress)
    names = mask_names(record)
    if config.prompts is not None:
        prompts = read_prompts(config.prompts, names, record.size)
        with _progress_bar(console, "masks") as progress:
            object_ids = _segmenter(config)(images, prompts, progress)
        write_prompts(folder / PROMPTS_FILE, prompts, names, record.size)
        write_masks(folder, object_ids, names)
        console.print(f"Masks of {len(names)} frames and {len(prompts.names)} objects are in {escape(str(folder))}")
    else:
        _serve_page(AnnotationSession(images, names, folder, _segmenter(config)), config, console)
    if any(folder.glob("*.png")):
        _print_next(config, folder, console)
    return 0


def _masks_folder(config: SegmentConfig) -> Path:
    """The output folder; raises ConfigError where none is given or it holds masks that this tool did not make."""
    if config.out is None:
        raise ConfigError("no folder for the masks is given; expected --out FOLDER.")
    foreign = next(iter(sorted(config.out.glob("*.png"))), None)
    if foreign is not None and not (config.out / PROMPTS_FILE).is_file():
        raise ConfigError(
            f"{config.out} holds images ({foreign.name}, ...) but no {PROMPTS_FILE}: masks could overwrite "
            "them; choose another folder with --out."
        )
    return config.out


def _segmenter(config: SegmentConfig) -> Segment:
    """SAM 2 where its weights are given, else what needs none."""
    if config.sam2.checkpoint is None:
        return segment_clip
    return lambda images, prompts, progress: segment_with_sam2(images, prompts, config.sam2, progress)


def _serve_page(session: AnnotationSession, config: SegmentConfig, console: Console) -> None:
    """Serve the page until Ctrl-C."""
    server = start_server(config.host, config.port, "Masks", console)
    try:
        AnnotationPage(server, session)
        console.print(
            f"Open {address(server)} in a browser. Prompts are kept in "
            f"{escape(str(session.folder / PROMPTS_FILE))} as you go; save masks on the page, then press Ctrl-C here."
        )
        server.sleep_forever()
    except KeyboardInterrupt:
        if session.has_unsaved_edits:
            console.print(
                "Masks were not saved after the last edit. The prompts were: open the page again, or add `--prompts "
                f"{escape(shlex.quote(str(session.folder / PROMPTS_FILE)))}` to make masks of them."
            )
    finally:
        server.stop()


@contextmanager
def _progress_bar(console: Console, name: str) -> Iterator[Progress]:
    with ProgressBars(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_next(config: SegmentConfig, folder: Path, console: Console) -> None:
    frames = config.frames
    source = ["--video", str(frames.video)] if frames.video is not None else ["--images", str(frames.images)]
    command = shlex.join(["python", "tools/prepare.py", *source, "--masks", str(folder), "--out"])
    console.print(f"Go on with: {escape(command)} SCENE, and the frame options you gave here")
