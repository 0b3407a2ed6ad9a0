"""The loop: make the agent smaller, repair it, judge it, until a smaller one would be worse; then confirm it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunerl import baselines, criteria, errors, learner, schedules, stats, visits
from prunerl.attempt import CHECKED, REPAIRS, attempt
from prunerl.errors import BudgetError, LearnError, RunError
from prunerl.evaluate import Yardstick, seeds, yardstick
from prunerl.journal import Journal, open_journal, recall, record
from prunerl.load import load
from prunerl.remove import fold_dead
from prunerl.report import schema
from prunerl.rollout import rollout, warm_up
from prunerl.search import STRUCTURES, Attempt, Step, adaptive, between, fixed
from prunerl.task import Candidate, Task, masked_parameters, one_thread, some
from prunerl.trace import Trace
from prunerl.types import VERSION, Agent, EnvSpec, Report, Round, Row, State, Structure, Verdict
from prunerl.visits import trace_policy

VISIT_EPISODES = 24
VISITED = 24_000
FEWEST_CONFIRMED = 100
ROUNDS_BETWEEN = 3
"""Rounds spent on agents between one that was refused by the confirmation and the next larger one."""

Observer = Callable[[str, Round | None], None]
"""Called with a line of progress, and with each finished round."""


@dataclass(frozen=True, eq=False)
class Result:
    """What :func:`prune` returns: the small agent, the dense one, and the report that compares them."""

    agent: Agent
    dense: Agent
    report: Report

    def __str__(self) -> str:
        from prunerl.report import render

        return render(self.report)


def prune(
    agent: Agent | str | Path,
    *,
    env: str | EnvSpec | None = None,
    name: str | None = None,
    tolerance: float = 0.05,
    sparsity: float | None = None,
    criterion: str | None = None,
    structure: str = "auto",
    schedule: str = "adaptive",
    rounds: int = 5,
    rule: str = "sparsity",
    ranking: str = "global",
    count: str = "parameters",
    distribution: str | None = None,
    min_units: int = 1,
    scope: str = "policy",
    critic_sparsity: float = 0.5,
    repair: Sequence[str] = ("least_squares", "distill"),
    finetune_steps: int = 10_000,
    episodes: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    compare: bool = True,
    observer: Observer | None = None,
) -> Result:
    """Return the smallest agent found that is not worse than the given one, with the proof.

    Args:
        agent: An agent from :func:`prunerl.load`, or the path of one.
        env: Its environment, when ``agent`` is a path.
        name: What the report calls the agent; by default its path, or its algorithm.
        tolerance: Largest satisfactory loss of return; 1 is the dense agent's gain over the random policy.
        sparsity: Share of the actor's parameters to remove. The adaptive schedule stops there at the latest; the
            others need it.
        criterion: Name of a score in :mod:`prunerl.criteria`; by default ``variance``, for weights ``magnitude``.
        structure: ``units``, ``weights``, ``layers``, or ``auto``: layers where that saves, and units.
        schedule: ``adaptive``, ``one_shot``, ``linear`` or ``cubic``.
        rounds: Rounds of a linear or cubic schedule.
        rule: How a schedule other than the adaptive one decides: ``sparsity`` keeps the best, ``probability`` draws
            what goes, worse scores more likely.
        ranking, count, distribution: Of the rule ``sparsity``: ranked ``global`` or ``local`` to each layer; counted in
            ``units``, ``parameters`` or ``macs``; spread over layers as ``uniform`` or ``erk`` (weights only, counted
            in ``units``). See :func:`prunerl.decide.by_sparsity`.
        min_units: Units that every hidden layer keeps; for single weights, what every matrix keeps.
        scope: ``policy`` prunes what acts and keeps the rest as it is; ``learner`` cuts the critics as well, once the
            policy is found, so that training on is faster too. Targets follow.
        critic_sparsity: Share of the parameters of each critic to remove in the scope ``learner``.
        repair: Stages after the cut, among ``least_squares``, ``distill`` and ``finetune``.
        finetune_steps: Environment steps of the agent's own training in the stage ``finetune``.
        episodes: Episodes of selection and of confirmation; by default as many as the spread of returns needs.
        seed: Everything random follows from it. Equal seeds give equal results on one machine.
        out: Folder for the agent, the report and what is needed to go on after an interruption.
        compare: Also make the baselines (same size from random weights, linear, one-shot magnitude).
        observer: Told about progress.

    Returns:
        The small agent, the dense one and the report. Where the adaptive search confirms no smaller agent, the agent is
        the dense one; the other schedules return the agent asked for, whatever its verdict.

    Raises:
        PruneError: See :mod:`prunerl.errors`; nothing that was there before is changed.
    """
    settings = {
        "tolerance": tolerance,
        "sparsity": sparsity,
        "criterion": (criterion or ("magnitude" if structure == "weights" else "variance")).replace("-", "_"),
        "structure": structure,
        "schedule": schedule.replace("-", "_"),
        "rounds": rounds,
        "rule": rule,
        "ranking": ranking,
        "scope": scope,
        "critic_sparsity": critic_sparsity,
        "count": count,
        "distribution": distribution,
        "min_units": min_units,
        "repair": [name for name in REPAIRS if name in repair],
        "finetune_steps": finetune_steps,
        "episodes": episodes,
        "seed": seed,
        "compare": compare,
    }
    settings = _checked(settings, repair)
    warm_up()
    dense = load(agent, env=env) if isinstance(agent, str | Path) else agent
    if "finetune" in repair and not dense.learns:
        raise LearnError(f"An agent of {dense.algorithm!r} cannot train on by itself. Leave 'finetune' out of repair.")
    source = name or (str(agent) if isinstance(agent, str | Path) else dense.algorithm)
    journal = open_journal(out, {**settings, "agent": baselines.fingerprint(dense), "env": schema.plain(dense.env)})
    finished = _finished_run(journal, dense)
    if finished is not None:
        return finished
    with one_thread():
        return _run(dense, settings, journal, observer or (lambda line, made: None), source)


def _run(dense: Agent, settings: Mapping[str, Any], journal: Journal, observer: Observer, source: str) -> Result:
    yard, candidate, visited = _prepare(dense, settings, journal)
    observer(f"dense agent: return {np.mean(yard.dense):.4g}, random policy: {yard.random:.4g}", None)
    task = Task(
        dense,
        candidate.traced if candidate.agent is dense else trace_policy(dense.policy, visited),
        visited,
        yard,
        settings["criterion"],
        tuple(settings["repair"]),
        settings["finetune_steps"],
        settings["seed"],
        settings["min_units"],
    )
    made: list[Round] = []
    passed: list[Candidate] = []

    def step(current: Candidate, plan: Attempt) -> tuple[Round, Candidate]:
        found = _round(task, current, plan, len(made) + 1, journal)
        made.append(found[0])
        if found[0].satisfied:
            passed.append(found[1])
        observer("", found[0])
        return found

    if settings["schedule"] == "adaptive":
        adaptive(task, candidate, settings["structure"], settings["sparsity"], step)
        observer("confirming on seeds that were not used before", None)
        chosen, dense_row, pruned_row, refused = _confirmed(task, candidate, passed, step, journal, settings)
    else:
        chosen, refused = _folded(fixed(task, candidate, settings, step), task), 0
        observer("confirming on seeds that were not used before", None)
        dense_row, pruned_row = _confirmation(task, chosen, 0, journal, settings)
    pruned_row = replace(
        pruned_row,
        seconds=pruned_row.seconds + yard.seconds + sum(r.seconds for r in made),
        env_steps=pruned_row.env_steps + yard.steps + sum(r.env_steps for r in made),
    )
    final, cut_critics = chosen.agent.state, tuple[str, ...]()
    if settings["scope"] == "learner":
        observer("cutting the critics", None)
        final, cut_critics = _smaller_critics(task, chosen, settings)
        pruned_row = baselines.measured(pruned_row, dense.with_state(final))
    if settings["compare"]:
        observer("making the baselines", None)
    rows = tuple(_baselines(task, candidate, chosen, dense_row, journal)) if settings["compare"] else ()
    report = Report(
        agent=source,
        algorithm=dense.algorithm,
        env=dense.env,
        settings=dict(settings),
        dense=dense_row,
        pruned=pruned_row,
        baselines=rows,
        rounds=tuple(made),
        kept_whole=dict(candidate.traced.kept_whole),
        notes=(*candidate.agent.notes, *_normalised(candidate.traced), *_refusals(refused), *cut_critics),
        versions=_versions(),
        command=_command(),
        seconds=sum(r.seconds for r in (dense_row, pruned_row, *rows)),
        env_steps=sum(r.env_steps for r in (dense_row, pruned_row, *rows)),
    )
    agent = candidate.agent.with_state(final)
    record(journal, "result", {}, _packed(agent.state))
    if journal.folder is not None:
        _write(journal.folder, agent, report)
    return Result(agent, dense, report)


def _checked(settings: dict[str, Any], repair: Sequence[str]) -> dict[str, Any]:
    """Check every setting before anything is done, and return them with what follows from them filled in."""
    stats.check_tolerance(settings["tolerance"])
    criteria.find(settings["criterion"])
    schedules.find(settings["schedule"])
    _one_of("structure", settings["structure"], STRUCTURES)
    _one_of("rule", settings["rule"], ("sparsity", "probability"))
    _one_of("ranking", settings["ranking"], ("global", "local"))
    _one_of("scope", settings["scope"], ("policy", "learner"))
    _one_of("count", settings["count"], ("units", "parameters", "macs"))
    _one_of("distribution", settings["distribution"] or "uniform", ("uniform", "erk"))
    for name in repair:
        _one_of("repair", name, REPAIRS)
    sparsity = settings["sparsity"]
    if sparsity is not None and not 0.0 <= sparsity < 1.0:
        raise BudgetError(f"sparsity must be in [0, 1), got {sparsity}. It is the share of parameters to remove.")
    if not 0.0 <= settings["critic_sparsity"] < 1.0:
        raise BudgetError(
            f"critic_sparsity must be in [0, 1), got {settings['critic_sparsity']}. It is the share to remove."
        )
    for name, least in (("rounds", 1), ("finetune_steps", 1), ("min_units", 1), ("seed", 0)):
        if settings[name] < least:
            raise BudgetError(f"{name} must be at least {least}, got {settings[name]}.")
    if settings["episodes"] is not None and settings["episodes"] < 10:
        raise BudgetError(f"episodes must be at least 10 for an interval, got {settings['episodes']}.")
    return settings if settings["schedule"] == "adaptive" else _scheduled(settings)


def _scheduled(settings: dict[str, Any]) -> dict[str, Any]:
    if settings["sparsity"] is None:
        raise BudgetError(
            f"Schedule {settings['schedule']!r} needs a sparsity to aim at. Give one, or use the adaptive schedule."
        )
    if settings["rule"] == "probability" and settings["min_units"] > 1:
        raise BudgetError("Rule 'probability' draws freely and knows no min_units. Use rule sparsity, or min_units=1.")
    if settings["structure"] == "layers":
        raise BudgetError("Layers are dropped by the adaptive schedule alone. Choose units or weights.")
    structure = "units" if settings["structure"] == "auto" else settings["structure"]
    if settings["distribution"] == "erk" and (structure != "weights" or settings["count"] != "units"):
        raise BudgetError("Distribution 'erk' spreads single weights. Choose structure weights and count units.")
    return {
        **settings,
        "structure": structure,
        "rounds": 1 if settings["schedule"] == "one_shot" else settings["rounds"],
    }


def _one_of(kind: str, got: str, choices: Sequence[str]) -> None:
    if got not in choices:
        raise errors.unknown(kind, got, choices)


def _prepare(dense: Agent, settings: Mapping[str, Any], journal: Journal) -> tuple[Yardstick, Candidate, Tensor]:
    """Measure the dense agent and visit states with it."""
    known, began = recall(journal, "dense"), time.perf_counter()
    policy, tolerance, seed = dense.policy, settings["tolerance"], settings["seed"]
    if known is None:
        yard = yardstick(policy, dense.env, tolerance=tolerance, seed=seed, episodes=settings["episodes"])
        played = rollout(policy, dense.env, seeds(seed, "visit", VISIT_EPISODES), record=True)
        count = VISITED // visits.steps_of(policy)
        visited = some(visits.inputs(policy, played), count, torch.Generator().manual_seed(seed))
        taken = time.perf_counter() - began
        yard = replace(yard, steps=yard.steps + played.steps, seconds=taken)
        data = {"random": yard.random, "dense": yard.dense, "steps": yard.steps, "seconds": taken}
        record(journal, "dense", data, {"visited": visited})
    else:
        first = seeds(seed, "select", 1)[0]
        kept = known.data
        returns, cost = tuple(kept["dense"]), (kept["steps"], kept["seconds"])
        yard = Yardstick(policy, dense.env, kept["random"], returns, first, tolerance, *cost)
        visited = known.tensors["visited"]
    start = dense.simplified()
    return yard, Candidate(start, trace_policy(start.policy, visited), visited[:0]), visited


def _round(task: Task, current: Candidate, plan: Attempt, index: int, journal: Journal) -> tuple[Round, Candidate]:
    """Compute a round, or replay it when an interrupted run has finished it before."""
    name = f"round-{index:03d}"
    known = recall(journal, name)
    if known is None:
        made, candidate = attempt(task, current, plan.structure, plan.decide, index=index, target=plan.target)
        tensors = {**_packed(candidate.agent.state), "visited": candidate.visited}
        record(journal, name, {"round": schema.plain(made)}, tensors)
        return made, candidate
    made = schema.read(Round, known.data["round"])
    agent = task.dense.with_state(_unpacked(known.tensors))
    visited = known.tensors["visited"]
    depth_changed = plan.structure == "layers"
    traced = trace_policy(agent.policy, task.visited) if depth_changed else current.traced
    return made, Candidate(agent, traced, visited, None if depth_changed else current.origin or current)


def _confirmed(
    task: Task, dense: Candidate, passed: list[Candidate], step: Step, journal: Journal, settings: Mapping[str, Any]
) -> tuple[Candidate, Row, Row, int]:
    """Judge the smallest agent that passed on fresh seeds; where it fails, a larger one on other fresh seeds.

    Args:
        task: The run.
        dense: The dense agent, which is the result when no smaller one is confirmed.
        passed: The agents that passed the selection; ``step`` adds to it.
        step: Carries out one more round.
        journal, settings: Of the run.

    Returns:
        The agent that was confirmed, the rows of the dense agent and of it, and how many failed before it.
    """
    refused: list[Candidate] = []
    while True:
        options = sorted((c for c in passed if c not in refused), key=masked_parameters)
        option = options[0] if options else dense
        rows = _confirmation(task, option, len(refused), journal, settings)
        if rows[1].verdict.satisfied or option is dense:
            return _folded(option, task), *rows, len(refused)
        refused.append(option)
        larger = options[1] if len(options) > 1 else dense
        if settings["structure"] != "layers":
            between(task, larger, masked_parameters(option), settings["structure"], step, rounds=ROUNDS_BETWEEN)


def _confirmation(
    task: Task, option: Candidate, number: int, journal: Journal, settings: Mapping[str, Any]
) -> tuple[Row, Row]:
    episodes = settings["episodes"] or max(FEWEST_CONFIRMED, len(task.yard.dense))
    chosen = seeds(task.seed, "confirm", episodes, offset=number * episodes)
    whole = Candidate(task.dense, task.traced, task.visited[:0])
    reference = _judged_row(f"dense-{number:03d}", task, whole, chosen, None, journal)
    row = _judged_row(f"confirm-{number:03d}", task, _folded(option, task), chosen, reference.verdict, journal)
    return reference, row


def _folded(candidate: Candidate, task: Task) -> Candidate:
    """Fold away, exactly, the units that died when single weights were removed."""
    agent = candidate.agent
    if not agent.state.masks:
        return candidate
    state = fold_dead(candidate.traced, agent.state, ties=agent.ties, observations=task.visited[:CHECKED])
    return replace(candidate, agent=agent.with_state(state))


def _judged_row(
    name: str, task: Task, option: Candidate, chosen: range, reference: Verdict | None, journal: Journal
) -> Row:
    known = recall(journal, f"row-{name}")
    if known is not None:
        return schema.read(Row, known.data["row"])  # type: ignore[no-any-return]
    began = time.perf_counter()
    played = rollout(option.agent.policy, task.dense.env, chosen)
    dense = played.returns if reference is None else reference.dense
    found = baselines.verdict(task, dense, played.returns, chosen)
    label = "dense" if reference is None else "pruned"
    row = baselines.row(label, option, found, time.perf_counter() - began, played.steps)
    record(journal, f"row-{name}", {"row": schema.plain(row)}, {})
    return row


def _baselines(task: Task, dense: Candidate, chosen: Candidate, dense_row: Row, journal: Journal) -> Iterator[Row]:
    for name, make in baselines.BASELINES.items():
        slug = name.replace(" ", "-").replace(",", "")
        known = recall(journal, f"baseline-{slug}")
        if known is not None:
            yield schema.read(Row, known.data["row"])
            continue
        made = baselines.judged(name, make, task, dense, chosen, dense_row.verdict)
        if made is not None:
            record(journal, f"baseline-{slug}", {"row": schema.plain(made)}, {})
            yield made


def _smaller_critics(task: Task, chosen: Candidate, settings: Mapping[str, Any]) -> tuple[State, tuple[str, ...]]:
    """Cut the critics of the chosen agent; what it does stays the same."""
    structure: Structure = "weights" if settings["structure"] == "weights" else "units"
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + 800_000)
    cuts = learner.prune_critics(
        chosen.agent, task.visited, settings["critic_sparsity"], structure=structure, generator=generator
    )
    lines = tuple(f"Critic {c.name}: {c.before:,} → {c.after:,} parameters." for c in cuts.critics)
    return cuts.state, lines or ("There are no critics to cut.",)


def _normalised(traced: Trace) -> tuple[str, ...]:
    if not traced.normalised:
        return ()
    names = ", ".join(sorted(traced.normalised))
    return (f"A norm runs over the units of {names}: without some of them what is left is normalised otherwise.",)


def _refusals(count: int) -> tuple[str, ...]:
    if count == 0:
        return ()
    agents = "1 smaller agent" if count == 1 else f"{count} smaller agents"
    return (f"Given up, having passed the selection but failed the confirmation: {agents}.",)


def _finished_run(journal: Journal, dense: Agent) -> Result | None:
    if journal.folder is None or not (journal.folder / "report.json").is_file():
        return None
    report = schema.from_json((journal.folder / "report.json").read_text())
    known = recall(journal, "result")
    if known is None:
        raise RunError(f"Folder {str(journal.folder)!r} has a report but not its agent. Remove report.json to go on.")
    return Result(dense.with_state(_unpacked(known.tensors)), dense, report)


def _write(folder: Path, agent: Agent, report: Report) -> None:
    from prunerl.files import write_atomically
    from prunerl.report import markdown, save_figure, write_events

    agent.save(folder / f"agent{agent.suffix}")
    save_figure(report, folder / "return.png")
    write_events(report, folder / "events")
    write_atomically(folder / "report.md", markdown(report))
    # The last file to be written: where it is, the run is complete.
    write_atomically(folder / "report.json", schema.to_json(report))


def _packed(state: State) -> dict[str, torch.Tensor]:
    tensors = {f"tensors/{n}": t for n, t in state.tensors.items()}
    moments = {f"moments/{n}/{k}": t for n, entries in state.moments.items() for k, t in entries.items()}
    return {**tensors, **moments, **{f"masks/{n}": t for n, t in state.masks.items()}}


def _unpacked(tensors: Mapping[str, torch.Tensor]) -> State:
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("moments/"):
            _, name, entry = key.split("/")
            moments.setdefault(name, {})[entry] = tensor

    def part(kind: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(kind): t for k, t in tensors.items() if k.startswith(kind)}

    return State(part("tensors/"), moments, part("masks/"))


def _command() -> str:
    """Return the command that was typed, or nothing when the library was called from elsewhere."""
    program = Path(sys.argv[0])
    typed = program.name == "prunerl" or program.parts[-2:] == ("prunerl", "__main__.py")
    return shlex.join(["prunerl", *sys.argv[1:]]) if typed else ""


def _versions() -> dict[str, str]:
    found = {"prunerl": VERSION, "python": platform.python_version()}
    for name in ("torch", "stable-baselines3", "gymnasium", "numpy", "scipy"):
        found[name] = importlib.metadata.version(name)
    return found
