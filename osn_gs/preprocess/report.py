"""The report step: what preparation found, on one page with pictures (report.html) and as text (report.txt)."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from osn_gs.data.osn_files import read_array, read_json
from osn_gs.files import write_text_atomic
from osn_gs.preprocess.frames import read_frames_record
from osn_gs.preprocess.layout import read_models
from osn_gs.preprocess.model_picture import draw_models
from osn_gs.preprocess.object_names import read_object_names
from osn_gs.preprocess.pictures import write_picture
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.sfm.objects import read_models_record
from osn_gs.preprocess.steps import read_records

HTML_FILE, TEXT_FILE = "report.html", "report.txt"
MODELS_PICTURE = Path("prepare") / "sfm.png"

PICTURES = {
    "frames": "Frames of the clip",
    "masks": "Masks: each object in its colour",
    "tracks": "Points followed through the clip",
    "sfm": "Every object's points (grey) and the path of the camera around it (from dark to light in time)",
    "layout": "Depth of the points, every object at scale 1",
}

COLUMNS = (
    "object",
    "confidence",
    "frames with a pose",
    "tracks",
    "points",
    "error, px",
    "tracks explained",
    "seen over",
    "parallax",
    "across, px",
    "scale range",
)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; border: 1px solid #ddd; }
.good { color: #17733a; } .weak { color: #a65e00; } .failed { color: #b3141d; font-weight: bold; }
"""


@dataclass(frozen=True)
class Report:
    """What the page says. `advice` and `seconds` go by step, `rows` have a cell for every one of `COLUMNS`."""

    title: str
    facts: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    advice: tuple[tuple[str, str], ...]
    seconds: tuple[tuple[str, float], ...]


def write_report(scene: Path, staging: Path, config: None, progress: Progress = no_progress) -> tuple[str, ...]:
    """The report step: report.html with its pictures inside, report.txt, and the picture of all models.

    Raises:
        DatasetError: files of earlier steps are missing or not theirs.
    """
    names = read_object_names(scene)
    models = read_models(scene, len(names), len(read_frames_record(scene).frames))
    write_picture(staging / MODELS_PICTURE, draw_models(models, names))
    report = gather_report(scene, names)
    pictures = []
    for step, caption in PICTURES.items():
        folder = staging if step == "sfm" else scene
        pictures.append((caption, (folder / "prepare" / f"{step}.png").read_bytes()))
    write_text_atomic(staging / HTML_FILE, report_html(report, pictures))
    write_text_atomic(staging / TEXT_FILE, report_text(report))
    progress(1, 1)
    return ()


def gather_report(scene: Path, names: Sequence[str]) -> Report:
    """Collect what the steps left in the scene folder."""
    frames, models, records = read_frames_record(scene), read_models_record(scene), read_records(scene)
    transforms = read_json(scene / "transforms_train.json")
    width, height = frames.size
    focal = f"focal length {models.focal:.0f} px ({models.focal_source}"
    focal += ")" if models.focal_uncertainty is None else f", give or take {models.focal_uncertainty:.0f})"
    facts = (
        f"{len(frames.frames)} frames of {width}x{height}",
        f"{len(names) - 1} moving {'object' if len(names) == 2 else 'objects'} and the background",
        focal,
        f"depths from {transforms['near']:g} to {transforms['far']:g}",
    )
    rows = []
    for k, (name, model) in enumerate(zip(names, models.objects, strict=True)):
        scale_range = "1" if k == 0 else "{:.2f} to {:.2f}".format(*read_array(scene / f"sfm/depth/scale{k}.npy", (2,)))
        rows.append(
            (
                f"{k} {name}",
                model.confidence,
                f"{model.registered} of {model.frames}",
                f"{model.tracks}",
                f"{model.points}",
                f"{model.mean_error:.2f}",
                f"{model.explained:.0%}",
                f"{model.viewpoint_range:.1f} deg",
                f"{model.parallax:.1f} deg",
                f"{model.extent:.0f}",
                scale_range,
            )
        )
    return Report(
        title=scene.resolve().name,
        facts=facts,
        rows=tuple(rows),
        advice=tuple((name, line) for name, record in records.items() for line in record.advice),
        seconds=tuple((name, record.seconds) for name, record in records.items()),
    )


def report_text(report: Report) -> str:
    """The report without its pictures."""
    cells = [COLUMNS, *report.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    advice = [f"- {step}: {line}" for step, line in report.advice] or ["Nothing looks weak."]
    parts = [report.title, "; ".join(report.facts), *table, "", "Advice", *advice, "", _times(report)]
    return "\n".join(parts) + "\n"


def report_html(report: Report, pictures: Sequence[tuple[str, bytes]]) -> str:
    """The report as one page that needs no other file; `pictures` are captions and PNG files."""
    return "\n".join(_html_lines(report, pictures)) + "\n"


def _html_lines(report: Report, pictures: Sequence[tuple[str, bytes]]) -> Iterator[str]:
    yield "<!doctype html>"
    yield f'<html lang="en"><meta charset="utf-8"><title>{escape(report.title)}</title><style>{STYLE}</style>'
    yield f"<h1>{escape(report.title)}</h1><p>{escape('; '.join(report.facts))}</p>"
    yield "<table><tr>" + "".join(f"<th>{column}</th>" for column in COLUMNS) + "</tr>"
    for row in report.rows:
        name, confidence, *figures = map(escape, row)
        cells = "".join(f"<td>{figure}</td>" for figure in figures)
        yield f'<tr><td>{name}</td><td class="{confidence}">{confidence}</td>{cells}</tr>'
    yield "</table><h2>Advice</h2><ul>"
    for step, line in report.advice:
        yield f"<li><b>{escape(step)}</b>: {escape(line)}</li>"
    yield "</ul>" if report.advice else "<li>Nothing looks weak.</li></ul>"
    for caption, picture in pictures:
        data = base64.b64encode(picture).decode()
        yield f'<h2>{escape(caption)}</h2><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    yield f"<p>{escape(_times(report))}</p></html>"


def _times(report: Report) -> str:
    return "Seconds: " + ", ".join(f"{step} {seconds:.1f}" for step, seconds in report.seconds)
