"""Steps are made again when, and only when, what they are made from has changed; a failure costs nothing else."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.progress import Progress
from osn_gs.preprocess.steps import Step, read_records, run_steps


@dataclass(frozen=True)
class WordsConfig:
    source: Path
    repeat: int = 1


def write_words(scene: Path, staging: Path, config: WordsConfig, progress: Progress) -> tuple[str, ...]:
    words = config.source.read_text().split() * config.repeat
    (staging / "words").mkdir()
    for number, word in enumerate(words):
        (staging / "words" / f"{number}.txt").write_text(word)
        progress(number + 1, len(words))
    return () if len(words) > 1 else ("one word only",)


def write_lengths(scene: Path, staging: Path, config: None, progress: Progress) -> tuple[str, ...]:
    (staging / "prepare").mkdir()
    lengths = [len(path.read_text()) for path in sorted((scene / "words").iterdir())]
    if 0 in lengths:
        raise DatasetError("an empty word")
    (staging / "prepare" / "lengths.json").write_text(json.dumps(lengths))
    return ()


def write_sum(scene: Path, staging: Path, config: None, progress: Progress) -> tuple[str, ...]:
    (staging / "sum.txt").write_text(str(sum(json.loads((scene / "prepare" / "lengths.json").read_text()))))
    return ()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("moon over water")
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return tmp_path / "scene"


def three_steps(source: Path, repeat: int = 1) -> tuple[Step, ...]:
    return (
        Step("words", write_words, WordsConfig(source, repeat), ()),
        Step("lengths", write_lengths, None, ("words",)),
        Step("sum", write_sum, None, ("lengths",)),
    )


def made(outcomes: Iterator) -> list[str]:
    return [outcome.name for outcome in outcomes if not outcome.unchanged]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_makes_nothing_and_changes_nothing(source: Path, scene: Path):
    assert made(run_steps(scene, three_steps(source))) == ["words", "lengths", "sum"]
    assert (scene / "sum.txt").read_text() == "13"
    before = files_in(scene)
    assert made(run_steps(scene, three_steps(source))) == []
    assert files_in(scene) == before


def test_another_input_of_the_same_name_is_noticed(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    source.write_text("sun")
    assert made(run_steps(scene, three_steps(source))) == ["words", "lengths", "sum"]
    assert (scene / "sum.txt").read_text() == "3"
    assert [path.name for path in (scene / "words").iterdir()] == ["0.txt"], "files of longer inputs are gone"
    assert read_records(scene)["words"].advice == ("one word only",)


def test_an_input_moved_elsewhere_is_the_same_input(source: Path, scene: Path, tmp_path: Path):
    list(run_steps(scene, three_steps(source)))
    moved = tmp_path / "elsewhere" / source.name
    moved.parent.mkdir()
    source.rename(moved)
    assert made(run_steps(scene, three_steps(moved))) == []


def test_another_option_is_noticed(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    assert made(run_steps(scene, three_steps(source, repeat=2))) == ["words", "lengths", "sum"]
    assert (scene / "sum.txt").read_text() == "26"


def test_a_result_corrected_by_hand_stays_and_is_used(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    (scene / "words" / "0.txt").write_text("a")
    assert made(run_steps(scene, three_steps(source))) == ["lengths", "sum"]
    assert (scene / "words" / "0.txt").read_text() == "a"
    assert (scene / "sum.txt").read_text() == "10"


def test_a_lost_result_is_made_again(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    (scene / "prepare" / "lengths.json").unlink()
    assert made(run_steps(scene, three_steps(source)))[0] == "lengths"
    assert (scene / "sum.txt").read_text() == "13"


def test_redo_repeats_a_step_and_what_reads_it_but_nothing_before(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    assert made(run_steps(scene, three_steps(source), redo=["lengths"])) == ["lengths", "sum"]


def test_a_failing_step_leaves_everything_as_it_was(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    before = files_in(scene)
    source.unlink()
    with pytest.raises(DatasetError, match=r"words: .*source\.txt"):
        list(run_steps(scene, three_steps(source)))
    assert files_in(scene) == before


def test_results_of_former_inputs_do_not_outlive_a_change_they_do_not_share(source: Path, scene: Path):
    """The new words cannot be measured; the sum of the old ones must not stay beside them."""
    first, *_ = steps = three_steps(source)
    list(run_steps(scene, steps))

    def write_an_empty_word(scene: Path, staging: Path, config: None, progress: Progress) -> tuple[str, ...]:
        (staging / "words").mkdir()
        (staging / "words" / "0.txt").touch()
        return ()

    with pytest.raises(DatasetError, match="an empty word"):
        list(run_steps(scene, (replace(first, run=write_an_empty_word, config=None), *steps[1:])))
    assert set(files_in(scene)) == {"words/0.txt", "prepare/steps.json"}
    assert set(read_records(scene)) == {"words"}


def test_a_full_disk_is_one_line_that_names_the_step_and_keeps_earlier_ones(source: Path, scene: Path):
    words, lengths, last = three_steps(source)

    def fill_the_disk(scene: Path, staging: Path, config: None, progress: Progress) -> tuple[str, ...]:
        (staging / "half.bin").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device", str(staging / "half.bin"))

    with pytest.raises(DatasetError, match=r"sum: .*No space left on device.*kept"):
        list(run_steps(scene, (words, lengths, replace(last, run=fill_the_disk))))
    assert set(files_in(scene)) == {f"words/{n}.txt" for n in range(3)} | {"prepare/lengths.json", "prepare/steps.json"}
    assert made(run_steps(scene, (words, lengths, last))) == ["sum"]


def test_files_that_cannot_grow_are_reported_too(source: Path, scene: Path):
    """As above with the operating system's own refusal, here of files above 100 kB."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")

    def write_much(scene: Path, staging: Path, config: None, progress: Progress) -> tuple[str, ...]:
        (staging / "much.bin").write_bytes(bytes(200_000))
        return ()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"much: .*File too large"):
            list(run_steps(scene, (Step("much", write_much, None, ()),)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not scene.exists(), "nothing was made, so nothing is left"


def test_an_interrupted_step_leaves_nothing_and_runs_again(source: Path, scene: Path):
    words, lengths, last = three_steps(source)

    def press_ctrl_c(scene: Path, staging: Path, config: None, progress: Progress) -> tuple[str, ...]:
        (staging / "half.txt").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_steps(scene, (words, replace(lengths, run=press_ctrl_c), last)))
    assert not list(scene.rglob("half.txt"))
    (scene / ".making-killed").mkdir()
    assert made(run_steps(scene, (words, lengths, last))) == ["lengths", "sum"]
    assert not (scene / ".making-killed").exists()


def test_a_folder_with_other_files_is_refused_untouched(source: Path, scene: Path):
    scene.mkdir()
    (scene / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="nothing was touched"):
        list(run_steps(scene, three_steps(source)))
    assert files_in(scene) == {"thesis.txt": b"years of work"}


def test_a_file_in_place_of_the_folder_is_refused(source: Path):
    with pytest.raises(ConfigError, match="this is a file"):
        list(run_steps(source, three_steps(source)))


def test_unreadable_records_are_one_clear_line(source: Path, scene: Path):
    list(run_steps(scene, three_steps(source)))
    (scene / "prepare" / "steps.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"steps\.json"):
        list(run_steps(scene, three_steps(source)))


def test_progress_is_asked_for_by_name_and_told_of_every_piece(source: Path, scene: Path):
    told: list[tuple[str, int, int]] = []
    outcomes = run_steps(
        scene,
        three_steps(source),
        progress_of=lambda name: lambda done, total: told.append((name, done, total)),
    )
    list(outcomes)
    assert told == [("words", 1, 3), ("words", 2, 3), ("words", 3, 3)]
