"""The viewer's benchmark says what is wrong with its options, and measures what it promises."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from osn_gs.benchmarks import viewer as benchmark
from osn_gs.benchmarks.viewer import ViewerBenchmark, benchmark_viewer
from osn_gs.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splats": (10,)}, "--splats: expected 100 or more, got 10."),
        ({"splats": ()}, "--splats: expected 100 or more, got 0."),
        ({"moves": 0}, "--moves: expected 1 or more, got 0."),
        ({"stretches": -1}, "--stretches: expected 0 or more, got -1."),
        ({"seconds": 0.0}, "--seconds: expected more than 0, got 0."),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        benchmark_viewer(ViewerBenchmark(**options), Console())


def test_without_a_browser_the_reason_is_told_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "missing_browser", lambda: "no Chromium was found; install chromium")
    console = Console(record=True, width=200)
    figures = benchmark_viewer(ViewerBenchmark(splats=(200,), moves=2, seconds=0.2, stretches=0), console)
    (row,) = figures["scenes"]
    assert row["splats"] == 200
    assert 0 < row["server_ms"] < 1e4
    assert row["round_trip_ms"] > 0
    assert row["pictures_per_s_cpu"] > 0
    assert "key_to_frame_ms" not in row
    assert "Without a browser: no Chromium was found" in console.export_text()
