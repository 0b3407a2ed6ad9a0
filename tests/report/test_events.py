from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunerl.errors import RunError
from prunerl.report import write_events
from prunerl.types import Report


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_events_are_readable(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_events(report, tmp_path / "events")
    found = _scalars(tmp_path / "events")
    assert found["prune/parameters"] == [(1, 1000), (2, 62), (3, 14)]
    assert found["prune/nonzeros"] == [(1, 1000), (2, 62), (3, 14)]
    assert found["prune/satisfied"] == [(1, 1), (2, 1), (3, 0)]
    assert found["prune/normalized_return"][1] == (2, pytest.approx(0.99))
    assert found["prune/interval_low"][1] == (2, pytest.approx(-0.02))
    assert found["prune/interval_high"][1] == (2, pytest.approx(0.01))
    assert found["prune/divergence/cut"][0] == (1, pytest.approx(1.1))
    assert found["time/seconds"][0] == (1, 2.5)
    assert found["time/env_steps"][0] == (1, 1200)
    assert capsys.readouterr().out == ""


def test_writing_again_replaces_the_events(report: Report, tmp_path: Path) -> None:
    write_events(report, tmp_path)
    write_events(report, tmp_path)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert len(_scalars(tmp_path)["prune/parameters"]) == 3


def test_a_file_in_the_way_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "events").write_text("")
    with pytest.raises(RunError, match="events"):
        write_events(report, tmp_path / "events")
