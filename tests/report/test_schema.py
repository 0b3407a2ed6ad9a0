from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunerl.errors import RunError
from prunerl.files import write_atomically
from prunerl.report import from_json, to_json
from prunerl.types import Report


def test_round_trip_is_exact(report: Report) -> None:
    text = to_json(report)
    again = from_json(text)
    assert again == report
    assert to_json(again) == text
    assert isinstance(again.rounds[0].kept["policy_net.0"], tuple)
    assert isinstance(again.pruned.verdict.interval, tuple)


@pytest.mark.parametrize("value", [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3])
def test_floats_keep_every_bit(report: Report, value: float) -> None:
    assert from_json(to_json(replace(report, seconds=value))).seconds.hex() == value.hex()


@pytest.mark.parametrize("text", ["[ 1,\n  2 ]", 'a "quoted" [1,2]', "→ é \u2028", "\udc80", "\\n[\\n1]"])
def test_text_survives_whatever_it_holds(report: Report, tmp_path: Path, text: str) -> None:
    noted = replace(report, notes=(text,), agent=text)
    path = tmp_path / "report.json"
    write_atomically(path, to_json(noted))
    assert from_json(path.read_text(encoding="utf-8")) == noted


def test_keys_that_others_read(report: Report) -> None:
    body = json.loads(to_json(report))
    assert body["schema"] == 1
    assert body["dense"]["parameters"] == 4996
    assert body["pruned"]["parameters"] == 62
    assert body["pruned"]["nonzeros"] == 62
    assert body["pruned"]["total_parameters"] == 124
    assert body["verdict"]["satisfied"] is True
    assert body["verdict"]["normalized"] == report.pruned.verdict.normalized
    assert body["verdict"]["interval"] == list(report.pruned.verdict.interval)
    assert body["rounds"][1]["units"] == [8, 4]


def test_numpy_numbers_paths_and_nested_tuples_are_written_as_plain_values(report: Report) -> None:
    settings = {
        "seed": np.int64(3),
        "low": np.float32(0.5),
        "on": np.bool_(True),
        "out": Path("run"),
        "pair": (1, (2,)),
    }
    again = from_json(to_json(replace(report, settings=settings)))
    assert again.settings == {"seed": 3, "low": 0.5, "on": True, "out": "run", "pair": [1, [2]]}


def test_returns_share_a_line(report: Report) -> None:
    assert '"dense": [500.0, 500.0, 480.0, 496.0]' in to_json(report)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(report: Report, value: float) -> None:
    stage = replace(report.rounds[0].stages[1], divergence=value)
    stages = (report.rounds[0].stages[0], stage)
    broken = replace(report, rounds=(replace(report.rounds[0], stages=stages),))
    with pytest.raises(RunError, match=r"rounds\[0\]\.stages\[1\]\.divergence"):
        to_json(broken)


@pytest.mark.parametrize(("settings", "where"), [({"f": print}, r"settings\.f"), ({"m": {1: 2}}, r"settings\.m.* 1")])
def test_what_json_cannot_hold_is_refused_by_name(report: Report, settings: dict[str, Any], where: str) -> None:
    with pytest.raises(RunError, match=where):
        to_json(replace(report, settings=settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema": NaN}', "not valid JSON: NaN"),
        ('{"schema": 1e999}', "too large"),
        ("[]", "no key 'schema'"),
        ('{"a": 1}', "no key 'schema'"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1}', "no key 'agent'"),
    ],
)
def test_broken_and_foreign_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        from_json(text)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("dense", "parameters"), "many", "dense.parameters.* int"),
        (("dense", "parameters"), 1.5, "dense.parameters.* int"),
        (("dense", "parameters"), True, "dense.parameters.* int"),
        (("dense",), [], "dense.* object"),
        (("rounds",), {}, "rounds.* array"),
        (("dense", "latency"), [1.0], "dense.latency.* array of 3"),
        (("dense", "verdict", "dense", 2), None, r"dense.verdict.dense\[2\].* float"),
        (("rounds", 0, "structure"), "atoms", "structure.* one of units"),
        (("kept_whole",), {"a": 1}, "kept_whole.a.* str"),
        (("verdict", "satisfied"), False, "contradicts itself"),
    ],
)
def test_a_damaged_key_is_named(report: Report, keys: tuple[Any, ...], value: Any, message: str) -> None:
    body = json.loads(to_json(report))
    place = body
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(RunError, match=message):
        from_json(json.dumps(body))
