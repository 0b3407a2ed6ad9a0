from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from prunerl.report import render, rounds_table, table
from prunerl.types import Report


def _text(drawn: object, width: int = 160) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(drawn)
    return file.getvalue()


def test_table_has_a_column_for_each_agent_and_the_numbers(report: Report) -> None:
    drawn = table(report)
    assert [str(column.header) for column in drawn.columns[1:]] == [
        "dense",
        "pruned",
        "linear policy",
        "same size, random weights",
    ]
    lines = {line[:38].strip(): line for line in _text(drawn).splitlines()}
    find = lambda label: next(line for name, line in lines.items() if name.startswith(label))  # noqa: E731
    assert find("parameters, actor").split()[-4:] == ["4,996", "62", "10", "62"]
    assert find("of them not zero").split()[-4:] == ["4,990", "62", "10", "62"]
    assert find("parameters, whole agent").split()[-4:] == ["9,992", "124", "20", "124"]
    assert find("verdict at tolerance 0.05").split()[-4:] == ["reference", "passes", "fails", "fails"]
    assert find("normalised return").split()[-4:] == ["1.000", "0.990", "0.100", "0.700"]
    assert find("return, mean").split()[-4:] == ["494.0", "489.1", "49.4", "345.8"]
    assert "[−0.020, 0.010]" in find("95 % interval of the difference")
    assert "8 × 4" in find("hidden widths")
    assert "none" in find("hidden widths")
    assert "10.1–15.0" in find("latency, 5 %–95 %")
    assert find("bytes on disk").split()[-4:] == ["20,984", "1,248", "1,040", "1,248"]
    assert find("environment steps").split()[-1] == "7,000"


def test_rounds_table_has_a_line_a_round_and_a_column_a_stage(report: Report) -> None:
    drawn = rounds_table(report)
    assert drawn.row_count == 3
    text = _text(drawn)
    assert all(name in text for name in ("cut", "squares", "distill", "best"))
    second = next(line for line in text.splitlines() if line.strip().startswith("2 "))
    assert second.split() == [
        *("2", "units", "0.25", "62", "8", "×", "4"),
        *("0.400", "0.800", "0.990", "distill", "passes", "2.5", "1,200"),
    ]


def test_a_stage_that_a_round_did_not_reach_is_left_open(report: Report) -> None:
    short = replace(report.rounds[0], stages=report.rounds[0].stages[:1], best=0)
    text = _text(rounds_table(replace(report, rounds=(short, report.rounds[1]))))
    first = next(line for line in text.splitlines() if line.strip().startswith("1 "))
    assert first.split().count("–") == 2


def test_render_is_plain_text_with_verdict_tables_and_caveats(report: Report) -> None:
    passing = replace(report.baselines[0], verdict=replace(report.baselines[0].verdict, satisfied=True))
    text = render(replace(report, baselines=(passing,)))
    assert "\x1b" not in text
    assert "4,996 → 62 parameters (actor)" in text
    assert "nearly linearly solvable" in " ".join(text.split())
    assert "linear policy" in text
    assert "distill" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", ["[red]", "[/]", ":smile:"])
def test_names_are_never_read_as_markup(report: Report, name: str) -> None:
    named = replace(report, baselines=(replace(report.baselines[0], name=name),))
    assert name in render(named)
    assert name in _text(table(named))


def test_a_report_without_rounds_or_baselines_is_drawn(report: Report) -> None:
    text = render(replace(report, rounds=(), baselines=(), pruned=replace(report.dense, name="pruned")))
    assert "Nothing was removed" in text


def test_render_never_breaks_a_number(report: Report) -> None:
    lines = render(report, width=60).splitlines()
    parameters = next(line for line in lines if line.strip().startswith("parameters, whole agent"))
    assert parameters.split()[-4:] == ["9,992", "124", "20", "124"]
    assert max(map(len, lines[:2])) <= 60
