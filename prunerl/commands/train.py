"""``prunerl train``: train a sparse agent, with checkpoints that a killed run goes on from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prunerl.errors import BudgetError, LoadError, RunError

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from prunerl.train import AdaptiveShrink, Shrink, Sparse

METHODS = ("gradual", "lottery", "movement", "redo", "rigl", "rlx2", "set", "static", "surgery")
SHRINKING = ("shrink", "shrink-adaptive")
AGENT, STATISTICS = "agent.zip", "agent_vecnormalize.pkl"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What ``prunerl train`` takes."""

    out: str
    """Folder of the run: checkpoints, and at the end agent.zip, and masks.pt where weights are masked."""
    algo: str | None = None
    """Algorithm: ppo, a2c, dqn, qrdqn, sac, td3, ddpg or tqc."""
    env: str | None = None
    """Gymnasium id of the environment."""
    method: str = "gradual"
    """How to prune: gradual, lottery, movement, redo, rigl, rlx2, set, static or surgery mask weights; shrink and
    shrink-adaptive remove units, which saves time; dense does nothing."""
    sparsity: float | None = None
    """Share of the weights that goes; by default the method's own. Shrink leaves the share √(1 − sparsity) of each
    layer's units, so that matrices between hidden layers lose this share."""
    actor_sparsity: float | None = None
    """The same for the actor alone."""
    critic_sparsity: float | None = None
    """The same for the critics alone."""
    distribution: str | None = None
    """How sparsity spreads over matrices: uniform, er, erk or global."""
    rule: str | None = None
    """Which weights gradual masks: best keeps the largest, probability draws them by their size."""
    width: int | None = None
    """Units that shrink leaves in each hidden layer, or shrink-adaptive at least; by default their own."""
    depth: int | None = None
    """Hidden layers that shrink leaves; by default all."""
    ridge: float | None = None
    """Penalty on the weights that are refitted after units have gone; 0.1 keeps them small, by default 1e-6."""
    distill: int | None = None
    """Updates of distillation from the larger networks after units have gone; by default none."""
    start: float | None = None
    """Share of training after which masks begin to change, or units go."""
    end: float | None = None
    """Share of training after which masks stay as they are."""
    every: int | None = None
    """Steps from one change of the masks to the next."""
    steps: int | None = None
    """Steps of training; by default n_timesteps of the hyperparameters."""
    hyperparameters: str | None = None
    """YAML file of hyperparameters as in the RL Zoo, by environment or plain; by default Stable-Baselines3's own."""
    checkpoint_every: int = 10_000
    """Steps from one checkpoint to the next."""
    tensorboard: bool = False
    """Write TensorBoard's files into the folder."""
    seed: int = 0
    """Everything random follows from it."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder; all other settings are read from it."""
    debug: bool = False
    """Show tracebacks of errors, and the warnings of other packages."""


def run(args: Arguments) -> None:
    """Train to the end and write the agent."""
    import torch

    from prunerl.train import AdaptiveShrink, Shrink, resume
    from prunerl.train.checkpoint import Resumed
    from prunerl.train.course import sparsity

    out = Path(args.out)
    if args.resume:
        _check_resumed(args)
        resumed = resume(out / "checkpoints")
    else:
        _check_free(out)
        resumed = Resumed(*_begun(args, out))
    if resumed.model.num_timesteps:
        resumed.learn(_lines(resumed.total))
    else:
        resumed.model.learn(resumed.total, callback=[resumed.callback, _lines(resumed.total)])
    model, callback = resumed.model, resumed.callback.callback
    model.save(out / AGENT)
    print(f"Trained {model.num_timesteps:,} steps. Written to {out}:")
    print(f"  {out / AGENT}")
    normalized = model.get_vec_normalize_env()
    if normalized is not None:
        normalized.save(out / STATISTICS)
        print(f"  {out / STATISTICS}  statistics of observations and rewards")
    changes = getattr(callback, "changes", ())
    if isinstance(callback, (Shrink, AdaptiveShrink)) and not changes:
        print("  No unit was removed: the networks are as wide as they were.")
    if changes:
        layers = ", ".join(f"{name} {'-'.join(map(str, units))}" for name, units in changes[-1].widths.items())
        print(f"  Widths: {layers}; {changes[-1].parameters:,} parameters")
    found = getattr(callback, "masks", {})
    if found:
        torch.save(dict(found), out / "masks.pt")
        print(f"  {out / 'masks.pt'}  masks by parameter name; {sparsity(found.values()):.2%} is masked")


def method(args: Arguments, model: Any = None) -> Sparse | Shrink | AdaptiveShrink | None:
    """Return the callback that was asked for; None for ``dense``.

    Args:
        args: What was asked for.
        model: The live model, whose widths tell how many units a sparsity leaves; without it, ``width`` or a default.

    Raises:
        NameUnknownError: There is no such method.
        BudgetError: A setting is out of its range, or not one of the method.
    """
    from prunerl import errors, train

    if args.method not in ("dense", *METHODS, *SHRINKING):
        raise errors.unknown("method", args.method, ("dense", *METHODS, *SHRINKING))
    settings = _settings(args)
    if args.method == "dense":
        return None
    if args.method == "shrink-adaptive":
        names = {"width": "least"}
        return train.AdaptiveShrink(**{names.get(n, n): v for n, v in settings.items()}, seed=args.seed)
    if args.method == "shrink":
        return _shrink(settings, model, args.seed)
    by_name = {name.lower(): name for name in train.METHODS}
    made: Sparse = getattr(train, by_name[args.method])(**settings, seed=args.seed)
    return made


def _settings(args: Arguments) -> dict[str, Any]:
    """Return the method's settings that were given."""
    sparsities = ("sparsity", "actor_sparsity", "critic_sparsity")
    known = {
        "dense": (),
        "shrink": (*sparsities, "width", "depth", "ridge", "distill", "start"),
        "shrink-adaptive": ("width", "ridge", "distill", "start"),
        "gradual": (*sparsities, "distribution", "rule", "start", "end", "every"),
    }.get(args.method, (*sparsities, "distribution", "start", "end", "every"))
    every = (*sparsities, "distribution", "rule", "width", "depth", "ridge", "distill", "start", "end", "every")
    given = {name: getattr(args, name) for name in every if getattr(args, name) is not None}
    bad = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if bad:
        fits = ", ".join(f"--{name.replace('_', '-')}" for name in known) or "none"
        raise BudgetError(f"Method {args.method} does not take {', '.join(bad)}. It takes: {fits}.")
    if "width" in given and given.keys() & set(sparsities):
        raise BudgetError("Both --width and a sparsity say how many units are left. Give one of them.")
    return given


def _shrink(settings: dict[str, Any], model: Any, seed: int) -> Shrink:
    from prunerl.train import Shrink
    from prunerl.train.shrink_networks import networks, widths

    names = {"start": "at"} | {name: name for name in ("width", "depth", "ridge", "distill")}
    given = {name: settings[own] for own, name in names.items() if own in settings}
    whole = settings.get("sparsity")
    shares = [settings.get(f"{part}_sparsity", whole) for part in ("actor", "critic")]
    for share in shares:
        if share is not None and not 0.0 <= share < 1.0:
            raise BudgetError(f"Method shrink got a sparsity of {share}. Set it to at least 0 and less than 1.")
    if model is None or shares == [None, None]:
        return Shrink(**given, seed=seed)
    present: dict[str, tuple[int, ...]] = {network.role: widths(model.policy, network) for network in networks(model)}
    for role in ("actor", "critic"):
        if f"{role}_sparsity" in settings and role not in present:
            raise BudgetError(f"There is no {role} network, so --{role}-sparsity is not used. Set --sparsity.")
    left = {role: layers[: settings.get("depth")] for role, layers in present.items()}
    actor, critic = (_narrow(left.get(role, ()), s) for role, s in zip(("actor", "critic"), shares, strict=True))
    return Shrink(**given, width=actor, critic_width=critic, seed=seed)


def _narrow(present: Sequence[int], sparsity: float | None) -> tuple[int, ...]:
    """Return the widths that are left; without a sparsity the present ones.

    >>> _narrow((256, 256), 0.95), _narrow((256, 64), None)
    ((58, 58), (256, 64))
    """
    return tuple(math.ceil(units * math.sqrt(1.0 - (sparsity or 0.0)) - 1e-9) for units in present)


def _check_free(out: Path) -> None:
    """Check that a run may begin in a folder: one that ended before its first checkpoint leaves nothing to keep."""
    from prunerl.train.checkpoint import newest

    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose a folder.")
    if newest(out / "checkpoints") is not None:
        raise RunError(f"{out} holds a run. Go on with --resume, or choose another folder: it is not empty.")
    if out.is_dir() and any(path.name not in ("tensorboard", "checkpoints") for path in out.iterdir()):
        raise RunError(f"{out} is not empty. Choose another folder.")


def _check_resumed(args: Arguments) -> None:
    own = ("out", "resume", "debug")
    given = [f for f in fields(args) if f.name not in own and getattr(args, f.name) != f.default]
    if given:
        names = ", ".join(f"--{f.name.replace('_', '-')}" for f in given)
        raise BudgetError(f"--resume goes on with the settings of the run. Leave out {names}.")


def _lines(total: int) -> BaseCallback:
    """Return a callback that prints a line every tenth of the training."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Lines(BaseCallback):
        """Prints how far the training is, and what its last episodes returned."""

        told = 0

        def _on_training_start(self) -> None:
            self.told = self.model.num_timesteps * 10 // total

        def _on_rollout_start(self) -> None:
            tenths = self.model.num_timesteps * 10 // total
            if tenths > self.told:
                self.told = tenths
                self.tell()

        def _on_training_end(self) -> None:
            self.tell()

        def _on_step(self) -> bool:
            return True

        def tell(self) -> None:
            """Print a line."""
            last = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            mean = f": return {fmean(last):.1f}, mean of the last {len(last)} episodes" if last else ""
            print(f"step {self.model.num_timesteps:,} of {total:,}{mean}", flush=True)

    return Lines()


def _begun(args: Arguments, out: Path) -> tuple[Any, Any, int]:
    from prunerl.train import Checkpoint
    from prunerl.train.zoo import untrained

    if args.algo is None or args.env is None:
        missing = "--algo" if args.algo is None else "--env"
        raise LoadError(f"{missing} is missing. Give --algo and --env, or --resume for a run that is there.")
    method(args)  # what cannot be is refused before anything is made
    log = str(out / "tensorboard") if args.tensorboard else None
    file = Path(args.hyperparameters) if args.hyperparameters is not None else None
    model, steps = untrained(args.algo, args.env, file=file, seed=args.seed, tensorboard_log=log)
    total = args.steps if args.steps is not None else steps
    if total is None:
        raise LoadError("Nobody says how long to train. Give --steps, or n_timesteps in the hyperparameters.")
    if total < 1:
        raise BudgetError(f"Training is to take {total} steps. Set --steps, or n_timesteps, to 1 or more.")
    callback = method(args, model)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be made ({error.strerror}). Choose another folder.") from error
    return model, Checkpoint(out / "checkpoints", callback, every=args.checkpoint_every), total
