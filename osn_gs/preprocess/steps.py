"""Steps that fill a scene folder one after another, each made again only when what it is made from has changed.

A step reads what earlier steps left in the scene folder and writes its own files into a staging folder inside it,
under the same relative paths. When it succeeds they are moved into place; when it fails they are deleted, and
everything that was there before stays. `prepare/steps.json` remembers what each step was made from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.progress import Progress, no_progress

STAGING_PREFIX = ".making-"
RECORDS_FILE = Path("prepare") / "steps.json"
READ_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class Step:
    """One step. `run(scene, staging, config, progress)` returns lines of advice for the user."""

    name: str
    run: Callable[[Path, Path, Any, Progress], tuple[str, ...]]
    config: Any
    """Its options, a dataclass, or None. What lies at the paths among them is part of what the step is made from."""
    reads: tuple[str, ...]
    """The earlier steps whose files it reads."""


@dataclass(frozen=True)
class StepRecord:
    """What is remembered of a finished step."""

    made_from: str
    """Digest of its options and of all files it may have read."""
    files: tuple[str, ...]
    """What it made: paths relative to the scene folder, sorted."""
    advice: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class StepOutcome:
    """A step that is done: made now, or found `unchanged`."""

    name: str
    unchanged: bool
    record: StepRecord


def run_steps(
    scene: Path,
    steps: Sequence[Step],
    redo: Iterable[str] = (),
    progress_of: Callable[[str], Progress] = lambda name: no_progress,
) -> Iterator[StepOutcome]:
    """Bring every step's files up to date, in the order given, which must put a step behind those it reads.

    A step runs when it never did, one of its files is gone, its options or anything it reads differ, or it or a step
    it reads is named in `redo`. Where a step's files changed, later steps' files that were made from the old ones are
    deleted, so that a scene folder never holds results that do not belong together. A file changed by hand stays;
    the steps that read it run again. `progress_of(name)` is asked for when that step begins.

    Raises:
        ConfigError: `scene` holds files but is not a folder that steps were run in.
        DatasetError: a step cannot do its work, or its files cannot be written; what earlier steps made is kept.
    """
    claim_scene_folder(scene)
    digests: dict[Path, str] = {}
    forced = set(redo)
    for number, step in enumerate(steps):
        records = read_records(scene)
        record = records.get(step.name)
        made_from = _digest_of_inputs(scene, step, records, digests)
        if not forced.isdisjoint(step.reads):
            forced.add(step.name)
        if (
            step.name not in forced
            and record is not None
            and record.made_from == made_from
            and _all_there(scene, record)
        ):
            yield StepOutcome(step.name, True, record)
            continue
        before = _digest_of_files(scene, record, digests)
        record = _run_step(scene, step, made_from, record, progress_of(step.name))
        for name in record.files:
            digests.pop(scene / name, None)
        if _digest_of_files(scene, record, digests) != before:
            _forget_dependents(scene, step.name, steps[number + 1 :])
        yield StepOutcome(step.name, False, record)


def claim_scene_folder(scene: Path) -> None:
    """Make sure that steps may write here: the folder is new, empty, or one that steps were run in before.

    Raises ConfigError for anything else. Removes what an interrupted process left unfinished.
    """
    if not scene.exists():
        return
    if not scene.is_dir():
        raise ConfigError(f"{scene}: the scene folder is to be written here, but this is a file; choose another --out.")
    for leftover in scene.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(leftover)
    if not (scene / RECORDS_FILE).is_file() and any(scene.iterdir()):
        raise ConfigError(
            f"{scene}: this folder has files that were not prepared here; nothing was touched. Choose an empty or new "
            "folder with --out."
        )


def read_records(scene: Path) -> dict[str, StepRecord]:
    """What is remembered of the steps that are finished; empty for a new folder."""
    path = scene / RECORDS_FILE
    if not path.is_file():
        return {}
    try:
        return {
            name: StepRecord(entry["made_from"], tuple(entry["files"]), tuple(entry["advice"]), entry["seconds"])
            for name, entry in json.loads(path.read_text()).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path}: not what was written here ({type(error).__name__}); delete the scene folder and prepare it anew."
        ) from error


def _write_records(scene: Path, records: dict[str, StepRecord]) -> None:
    write_json_atomic(scene / RECORDS_FILE, {name: asdict(record) for name, record in records.items()})


def _run_step(scene: Path, step: Step, made_from: str, previous: StepRecord | None, progress: Progress) -> StepRecord:
    """Run one step into a staging folder and, when it is done, put its files in place of its previous ones."""
    is_new = not scene.exists()
    try:
        scene.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=scene))
        try:
            started = time.monotonic()
            advice = tuple(step.run(scene, staging, step.config, progress))
            files = tuple(sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()))
            record = StepRecord(made_from, files, advice, round(time.monotonic() - started, 2))
            _put_in_place(scene, staging, step.name, record, previous)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new and not any(scene.iterdir()):
                scene.rmdir()
    except OSError as error:
        where = error.filename or scene
        raise DatasetError(
            f"{step.name}: {where}: {error.strerror or error}; check the path, rights and space (what earlier steps "
            "made is kept)."
        ) from error
    return record


def _put_in_place(scene: Path, staging: Path, name: str, record: StepRecord, previous: StepRecord | None) -> None:
    """Move staged files to the scene folder and delete those the step no longer makes.

    The step counts as not done while that goes on, so that a process killed here is followed by a new run of it.
    """
    records = read_records(scene)
    if records.pop(name, None) is not None:
        _write_records(scene, records)
    for file in record.files:
        target = scene / file
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / file, target)
    if previous is not None:
        _delete(scene, set(previous.files) - set(record.files))
    _write_records(scene, {**records, name: record})


def _forget_dependents(scene: Path, changed: str, later: Sequence[Step]) -> None:
    """Delete what was made from `changed`'s former files, directly or through other steps."""
    records = read_records(scene)
    outdated = {changed}
    for step in later:
        if not outdated.isdisjoint(step.reads):
            outdated.add(step.name)
            record = records.pop(step.name, None)
            if record is not None:
                _delete(scene, record.files)
    _write_records(scene, records)


def _delete(scene: Path, files: Iterable[str]) -> None:
    """Delete files and the folders that become empty by it."""
    for file in files:
        path = scene / file
        path.unlink(missing_ok=True)
        while (path := path.parent) != scene and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _all_there(scene: Path, record: StepRecord) -> bool:
    return all((scene / file).is_file() for file in record.files)


def _digest_of_inputs(scene: Path, step: Step, records: dict[str, StepRecord], digests: dict[Path, str]) -> str:
    """One text that changes with the step's options and with the content of every file it may read."""
    inputs: list[Any] = [
        [name, _digest_of_source(value, digests) if isinstance(value, Path) else repr(value)]
        for name, value in _options(step.config)
    ]
    inputs += [[name, _digest_of_files(scene, records.get(name), digests)] for name in step.reads]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All options of nested dataclasses as (dotted name, value); none for None."""
    for field in () if config is None else dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _options(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _digest_of_source(path: Path, digests: dict[Path, str]) -> list[list[str]]:
    """Names and contents of a user's file, or of all files in a folder; empty where there is nothing."""
    if path.is_file():
        return [[path.name, _digest_of_file(path, digests)]]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[file.relative_to(path).as_posix(), _digest_of_file(file, digests)] for file in files]


def _digest_of_files(scene: Path, record: StepRecord | None, digests: dict[Path, str]) -> list[list[str]]:
    """Names and contents of what a step made, as it lies there now."""
    files = () if record is None else record.files
    return [[file, _digest_of_file(scene / file, digests)] for file in files if (scene / file).is_file()]


def _digest_of_file(path: Path, digests: dict[Path, str]) -> str:
    """SHA-256 of a file's content, kept in `digests` for the next time it is asked for."""
    if path not in digests:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(READ_AT_ONCE):
                digest.update(block)
        digests[path] = digest.hexdigest()
    return digests[path]
