"""``prunerl train``: train a sparse agent, with checkpoints that a killed run goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunerl.errors import LoadError, RunError

if TYPE_CHECKING:
    from prunerl.train import Sparse

METHODS = ("gradual", "lottery", "movement", "redo", "rigl", "rlx2", "set", "static", "surgery")
AGENT = "agent.zip"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What ``prunerl train`` takes."""

    out: str
    """Folder of the run: checkpoints, and at the end agent.zip and masks.pt."""
    algo: str | None = None
    """Algorithm: ppo, a2c, dqn, qrdqn, sac, td3, ddpg or tqc."""
    env: str | None = None
    """Gymnasium id of the environment."""
    method: str = "gradual"
    """How to prune: gradual, lottery, movement, redo, rigl, rlx2, set, static, surgery, or dense for not at all."""
    sparsity: float | None = None
    """Share of the weights that goes; by default the method's own."""
    actor_sparsity: float | None = None
    """The same for the actor alone."""
    critic_sparsity: float | None = None
    """The same for the critics alone."""
    distribution: str | None = None
    """How sparsity spreads over matrices: uniform, er, erk or global."""
    start: float | None = None
    """Share of training after which masks begin to change."""
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

    from prunerl.train import resume
    from prunerl.train.checkpoint import Resumed
    from prunerl.train.course import sparsity

    out = Path(args.out)
    if args.resume:
        resumed = resume(out / "checkpoints")
    else:
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out} is not empty. Go on with --resume, or choose another folder.")
        resumed = Resumed(*_begun(args, out))
    if resumed.model.num_timesteps:
        resumed.learn()
    else:
        resumed.model.learn(resumed.total, callback=resumed.callback)
    model, callback = resumed.model, resumed.callback.callback
    model.save(out / AGENT)
    print(f"Trained {model.num_timesteps:,} steps. Written to {out}:")
    print(f"  {out / AGENT}")
    found = getattr(callback, "masks", {})
    if found:
        torch.save(dict(found), out / "masks.pt")
        print(f"  {out / 'masks.pt'}  masks by parameter name; {sparsity(found.values()):.2%} is masked")


def method(args: Arguments) -> Sparse | None:
    """Return the callback that was asked for; None for ``dense``.

    Raises:
        NameUnknownError: There is no such method.
        BudgetError: A setting is out of its range.
    """
    from prunerl import errors, train

    if args.method == "dense":
        return None
    by_name = {name.lower(): name for name in train.METHODS}
    if args.method not in by_name:
        raise errors.unknown("method", args.method, ("dense", *METHODS))
    names = ("sparsity", "actor_sparsity", "critic_sparsity", "distribution", "start", "end", "every")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    made: Sparse = getattr(train, by_name[args.method])(**given, seed=args.seed)
    return made


def _begun(args: Arguments, out: Path) -> tuple[Any, Any, int]:
    from prunerl.train import Checkpoint
    from prunerl.train.zoo import untrained

    if args.algo is None or args.env is None:
        raise LoadError("The algorithm or the environment is not known. Give --algo and --env, or --resume.")
    callback = method(args)
    log = str(out / "tensorboard") if args.tensorboard else None
    file = Path(args.hyperparameters) if args.hyperparameters is not None else None
    model, steps = untrained(args.algo, args.env, file=file, seed=args.seed, tensorboard_log=log)
    total = args.steps if args.steps is not None else steps
    if total is None:
        raise LoadError("Nobody says how long to train. Give --steps, or n_timesteps in the hyperparameters.")
    return model, Checkpoint(out / "checkpoints", callback, every=args.checkpoint_every), total
