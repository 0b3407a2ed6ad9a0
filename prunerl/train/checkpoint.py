"""Checkpoints of everything: a run that was killed ends bit for bit where it would have ended.

model.learn(100_000, callback=Checkpoint("runs/acrobot", Gradual(sparsity=0.95), every=10_000))
resume("runs/acrobot").learn()      # in a new process, after the first was killed
"""

from __future__ import annotations

import importlib
import itertools
import json
import pickle
import random
import re
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor

from prunerl.errors import BudgetError, LearnWarning, RunError
from prunerl.files import new_folder, write_atomically
from prunerl.train.pickles import innermost, layers, pickled, stateless

MODEL, BUFFER, STATE, ABOUT = "model.zip", "replay_buffer.pkl", "state.pkl", "about.json"
_NAME = re.compile(r"step_(\d+)")


class Checkpoint(BaseCallback):
    """Run a callback, and save everything at the start of a rollout every so many steps.

    A checkpoint is a folder that appears whole or not at all: the model's zip, its replay buffer, and the states of the
    callback, of the environments and of all random numbers. Only the newest is kept.

    Some environments pickle how they were made, and not their state (Box2D's, and others that are ``EzPickle``). Of
    these a resumed run begins new episodes, and so does not end at the same bits; a warning says so when training
    starts. MuJoCo's are saved with their simulations.

    Args:
        folder: Where they are; it holds nothing else.
        callback: What prunes, or several in a ``CallbackList``; saved without the model and its local variables.
        every: Steps of the environment from one checkpoint to the next.

    Raises:
        BudgetError: ``every`` is below 1.
        RunError: In ``learn()``: the environments cannot be pickled, the folder holds another run, or cannot be
            written.
    """

    def __init__(self, folder: str | Path, callback: BaseCallback | None = None, *, every: int = 10_000) -> None:
        super().__init__()
        if every < 1:
            raise BudgetError(f"A checkpoint got every={every}. Set it to 1 step or more.")
        self.folder = Path(folder)
        self.callback = callback if callback is not None else CallbackList([])
        self.every = every
        self.next = every
        self.live: dict[str, Any] | None = None

    def _init_callback(self) -> None:
        self.callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        if self.live is None and self.model.num_timesteps == 0 and newest(self.folder) is not None:
            raise RunError(
                f"{self.folder} holds checkpoints of another run. Go on with it (resume, --resume), or choose "
                "another folder."
            )
        if self.live is None:
            pickled(self.model.env)
            lost = sorted({type(env).__name__ for env in stateless(self.model.env)})
            if lost:
                warnings.warn(
                    f"{', '.join(lost)} cannot be saved in the middle of an episode. A resumed run will begin new "
                    "episodes, and so not end at the same bits.",
                    LearnWarning,
                    stacklevel=2,
                )
        if self.model.num_timesteps == 0:
            self.next = self.every
        self.callback.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        if self.live is not None:  # what learn() itself did on its way here must not count
            _restore(self.model, self.live)
            self.live = None
            return
        self.callback.on_rollout_start()
        if self.model.num_timesteps >= self.next:
            self.next = (self.model.num_timesteps // self.every + 1) * self.every
            self.save()

    def _on_step(self) -> bool:
        return bool(self.callback.on_step())

    def _on_rollout_end(self) -> None:
        self.callback.on_rollout_end()

    def _on_training_end(self) -> None:
        self.callback.on_training_end()

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Hand the local variables on."""
        self.callback.update_locals(locals_)

    def save(self) -> Path:
        """Write a checkpoint now and remove the older ones.

        Raises:
            RunError: It cannot be written.
        """
        model, target = self.model, self.folder / f"step_{self.model.num_timesteps:012d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"module": type(model).__module__, "class": type(model).__qualname__, "total": model._total_timesteps}
        state = {"callback": pickled(self.callback), "live": pickled(_live(model)), "every": self.every}
        state |= {"next": self.next, "n_calls": self.n_calls}
        if target.exists():
            shutil.rmtree(target)
        with new_folder(target) as folder:
            model.save(folder / MODEL)
            buffer = getattr(model, "replay_buffer", None)
            if buffer is not None:
                write_atomically(folder / BUFFER, pickled(buffer))
            write_atomically(folder / STATE, pickled(state))
            write_atomically(folder / ABOUT, json.dumps(about))
        for old in self.folder.iterdir():
            if (_NAME.fullmatch(old.name) and old.name < target.name) or old.name.endswith(".tmp"):
                shutil.rmtree(old, ignore_errors=True)
        return target


@dataclass(frozen=True, eq=False)
class Resumed:
    """A run as it was at its newest checkpoint.

    Attributes:
        model: The live model, with its environments.
        callback: The checkpoints, around what prunes.
        total: Steps at which training ends.
    """

    model: Any
    callback: Checkpoint
    total: int

    def learn(self, *more: BaseCallback, **options: Any) -> Any:
        """Train to the end, with more callbacks beside; the options are those of the model's ``learn``."""
        left = self.total - self.model.num_timesteps
        return self.model.learn(left, callback=[self.callback, *more], reset_num_timesteps=False, **options)


def resume(folder: str | Path, *, tensorboard_log: str | None = None) -> Resumed:
    """Read the newest checkpoint of a folder. Its pickles run code: read only your own.

    Args:
        folder: What :class:`Checkpoint` was given.
        tensorboard_log: Another folder for TensorBoard; by default the model's own.

    Raises:
        RunError: There is no checkpoint, or it is damaged.
    """
    path = newest(Path(folder))
    if path is None:
        raise RunError(
            f"{folder} holds no checkpoint: the run ended before its first. Begin anew, with an earlier first one, or "
            "give the folder of a run that has made one."
        )
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        state = pickle.loads((path / STATE).read_bytes())
        kind = getattr(importlib.import_module(about["module"]), about["class"])
        live = pickle.loads(state["live"])
        model = kind.load(path / MODEL, env=live["env"], force_reset=False)
        if (path / BUFFER).is_file():
            model.replay_buffer = pickle.loads((path / BUFFER).read_bytes())
            if isinstance(model.replay_buffer, HerReplayBuffer):
                model.replay_buffer.set_env(model.env)
        callback = Checkpoint(folder, pickle.loads(state["callback"]), every=state["every"])
    except _DAMAGED as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Read it on the same device and with the same "
            "versions as it was made; if it is damaged, begin anew in another folder."
        ) from error
    callback.next, callback.n_calls, callback.live = state["next"], state["n_calls"], live
    if tensorboard_log is not None:
        model.tensorboard_log = tensorboard_log
    return Resumed(model, callback, about["total"])


_DAMAGED = (
    OSError, ValueError, KeyError, EOFError, ImportError, AttributeError, AssertionError, RuntimeError, IndexError,
    TypeError, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""What reading half a file may raise."""


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint in a folder; None where there is none."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return max(found, key=lambda path: path.name, default=None)


def _live(model: Any) -> dict[str, Any]:
    """Return what a model's zip leaves out."""
    return {
        "env": model.env,
        "action_space": model.action_space,  # draws random actions, and load() seeds it anew
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "last_obs": model._last_obs,
        "original_obs": model._last_original_obs,
        "starts": model._last_episode_starts,
        "lstm": getattr(model, "_last_lstm_states", None),
        "noise": _noise(model),
        "progress": model._current_progress_remaining,
    }


def _restore(model: Any, live: dict[str, Any]) -> None:
    model._last_obs, model._last_original_obs = live["last_obs"], live["original_obs"]
    model._last_episode_starts, model._current_progress_remaining = live["starts"], live["progress"]
    if any(True for _ in stateless(model.env)):
        _begin_episodes(model)
    model.action_space = live["action_space"]
    if live["lstm"] is not None:
        model._last_lstm_states = live["lstm"]
    for place, drawn in live["noise"].items():
        vars(_part(model, place).action_dist).update(drawn)
    random.setstate(live["python"])
    np.random.set_state(live["numpy"])
    torch.set_rng_state(live["torch"])
    if live["cuda"]:
        torch.cuda.set_rng_state_all(live["cuda"])


def _noise(model: Any) -> dict[str, dict[str, Any]]:
    """Return the exploration of gSDE, which is drawn before the callback is called."""
    found = {}
    for place in ("policy", "actor"):
        own = vars(getattr(_part(model, place), "action_dist", object.__new__(_Nothing)))
        drawn = {k: v.detach() for k, v in own.items() if k.startswith("exploration_mat") and v is not None}
        if drawn:
            found[place] = drawn
    return found


class _Nothing:
    """Stands for a distribution that is not there."""


def _part(model: Any, place: str) -> Any:
    return model.policy if place == "policy" else getattr(model.policy, "actor", None)


def _begin_episodes(model: Any) -> None:
    """Begin all episodes anew: those that were under way are gone."""
    inner = innermost(model.env)
    inner._reset_seeds()  # load() has set the seed again, which would repeat the first episodes
    inner._reset_options()
    for layer in itertools.chain.from_iterable(map(layers, vars(inner).get("envs", ()))):
        if isinstance(layer, Monitor):
            layer.needs_reset = True  # though it may not allow early resets
    model._last_obs = model.env.reset()
    normalized = model.get_vec_normalize_env()
    if normalized is not None and model._last_original_obs is not None:
        model._last_original_obs = normalized.get_original_obs()
    model._last_episode_starts = np.ones((model.n_envs,), dtype=bool)
    if getattr(model, "action_noise", None) is not None:
        model.action_noise.reset()
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, HerReplayBuffer):
        buffer.truncate_last_trajectory()
    elif buffer is not None and buffer.size():
        # No target may reach from an episode that was cut off into the next one; one that was over stays as it is.
        last = (buffer.pos - 1) % buffer.buffer_size
        if buffer.optimize_memory_usage:
            buffer.dones[last] = True
        else:
            buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], np.logical_not(buffer.dones[last]))
