"""Files are written whole or not at all."""

import json
import os
import stat

import pytest

from osn_gs import files
from osn_gs.files import write_bytes_atomic, write_json_atomic, write_text_atomic


def test_what_was_written_reads_back(tmp_path):
    write_bytes_atomic(tmp_path / "a.bin", b"\x00\xff")
    write_text_atomic(tmp_path / "a.txt", "größer\n")
    write_json_atomic(tmp_path / "a.json", {"scales": [1, 0.5], "name": "é"})
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größer\n"
    assert json.loads((tmp_path / "a.json").read_text()) == {"scales": [1, 0.5], "name": "é"}


def test_missing_folders_are_made_and_the_earlier_file_is_replaced(tmp_path):
    path = tmp_path / "runs" / "demo" / "note.txt"
    write_text_atomic(path, "first, and longer")
    write_text_atomic(path, "second")
    assert path.read_text() == "second"
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]


def test_others_may_read_the_file(tmp_path):
    write_text_atomic(tmp_path / "note.txt", "")
    assert stat.S_IMODE(os.stat(tmp_path / "note.txt").st_mode) == 0o644


@pytest.mark.parametrize("failing", ["replace", "chmod"])
def test_a_failure_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "note.txt"
    path.write_text("earlier")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomic(path, "later")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    path.write_text("earlier")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "later")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"path": object()}])
def test_what_json_cannot_say_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json_atomic(tmp_path / "a.json", {"value": value})
    assert not list(tmp_path.iterdir())
