from __future__ import annotations

from dataclasses import replace

import pytest

from prunerl.report import caveats, markdown, sentence
from prunerl.types import Report, Size

LINEAR = "nearly linearly solvable"
SCRATCH = "without the dense agent's weights"
LITTLE = "the ratio proves little about the pruning method"


def _judged(report: Report, *satisfied: bool) -> Report:
    rows = tuple(
        replace(row, verdict=replace(row.verdict, satisfied=each))
        for row, each in zip(report.baselines, satisfied, strict=True)
    )
    return replace(report, baselines=rows)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("scratch", [False, True])
def test_the_honest_note_is_there_exactly_when_a_baseline_passes(report: Report, linear: bool, scratch: bool) -> None:
    text = markdown(_judged(report, linear, scratch))
    assert (LINEAR in text) == linear
    assert (SCRATCH in text) == scratch
    assert text.count(LITTLE) == linear + scratch


def test_a_baseline_of_any_other_name_is_not_passed_over(report: Report) -> None:
    other = replace(report.baselines[0], name="uniform", verdict=report.dense.verdict)
    assert any("'uniform'" in caveat and LITTLE in caveat for caveat in caveats(replace(report, baselines=(other,))))


def test_other_caveats(report: Report) -> None:
    assert caveats(report) == ()
    failed = replace(report.pruned, verdict=replace(report.pruned.verdict, satisfied=False))
    assert "does not pass" in caveats(replace(report, pruned=failed))[0]
    assert "Nothing was removed" in caveats(replace(report, pruned=report.dense))[0]
    assert "No baseline" in caveats(replace(report, baselines=()))[-1]


def test_sentence(report: Report) -> None:
    assert sentence(report) == (
        "4,996 → 62 parameters (actor), normalised return 0.990, 95 % interval of the paired difference "
        "[−0.020, 0.010] over 4 episodes; tolerance 0.05: passes."
    )
    sparse = replace(report, pruned=replace(report.pruned, size=Size(4996, 300, 4864, (64, 64))))
    assert sentence(sparse).startswith("4,996 → 4,996 parameters (actor), 300 of them not zero, ")


def test_every_part_is_there(report: Report) -> None:
    text = markdown(report)
    assert text.startswith("# ppo on CartPole-v1")
    for part in (
        sentence(report),
        "![Normalised return against the size of the actor](return.png)",
        "| parameters, actor | 4,996 | 62 | 10 | 62 |",
        "| 2 | units | 0.25 | 62 | 8 × 4 | 0.400 | 0.800 | 0.990 | distill | passes | 2.5 | 1,200 |",
        "| policy_net.0 | units | 8 of 64 | by taylor, round 2 |",
        "`action_net`: its outputs are the actions",
        "- The value network was cut",
        "seeds: confirmation 10000 to 10003; selection 100 to 103",
        "| schedule | `[0.5, 0.25]` |",
        "| torch | `2.13` |",
        "```\nprunerl prune cartpole.zip --env CartPole-v1\n```",
    ):
        assert part in text


def test_tables_survive_bars_and_line_breaks(report: Report) -> None:
    text = markdown(replace(report, versions={"a|b": "1\n2"}))
    assert "| a\\|b | `1 2` |" in text


def test_empty_parts_say_so(report: Report) -> None:
    bare = replace(report, rounds=(), baselines=(), kept_whole={}, notes=(), settings={}, versions={})
    text = markdown(bare)
    for heading in ("## Rounds", "## What was kept whole, and why", "## Notes"):
        assert f"{heading}\n\nNone." in text
    assert "## What was pruned, and why\n\nNothing." in text
