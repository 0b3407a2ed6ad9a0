from __future__ import annotations

from dataclasses import replace

import pytest

from prunerl.report import cells
from prunerl.types import Report


@pytest.mark.parametrize(("value", "digits", "text"), [(-0.0004, 3, "0.000"), (1e6, 0, "1,000,000"), (-2.5, 1, "−2.5")])
def test_number(value: float, digits: int, text: str) -> None:
    assert cells.number(value, digits) == text


def test_targets_are_sparsities_or_parameters(report: Report) -> None:
    many = replace(report, rounds=(replace(report.rounds[0], target=1_234_567), report.rounds[1]))
    assert [line[2] for line in cells.rounds(many).rows] == ["1,234,567", "0.25"]


def test_path_ends_at_the_result_and_leaves_undone_rounds_out(report: Report) -> None:
    assert [each.index for each in cells.path(report)] == [1, 2]
    undone = replace(report.rounds[0], satisfied=False)
    assert [each.index for each in cells.path(replace(report, rounds=(undone, *report.rounds[1:])))] == [2]
    assert cells.path(replace(report, pruned=report.dense)) == ()


def test_kept_counts_from_the_dense_agent_to_the_result(report: Report) -> None:
    assert cells.kept(report).rows == (
        ("policy_net.0", "units", "8 of 64", "by taylor, round 2"),
        ("policy_net.2", "units", "4 of 64", "by taylor, round 2"),
    )


def test_kept_is_the_same_when_rounds_count_from_the_one_before(report: Report) -> None:
    second = replace(report.rounds[1], kept={"policy_net.0": (8, 16), "policy_net.2": (4, 4)})
    chained = replace(report, rounds=(report.rounds[0], second))
    assert cells.kept(chained).rows == (
        ("policy_net.0", "units", "8 of 64", "by taylor, round 2"),
        ("policy_net.2", "units", "4 of 64", "by taylor, round 1"),
    )
