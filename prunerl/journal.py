"""Remember finished steps of a run on disk, so that an interrupted run goes on from the last one.

A step is one file, written whole or not at all: tensors, and JSON in the same file's header. A run that is started
again replays the steps that it finds and computes the others; since every step draws its randomness from the run's
seed and its own name, it ends as if it had never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prunerl.errors import RunError
from prunerl.files import write_atomically
from prunerl.types import EnvSpec

SETTINGS = "run.json"
STEPS = "steps"


@dataclass(frozen=True)
class Journal:
    """Where steps are remembered; ``folder`` None remembers nothing."""

    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step: plain data and tensors."""

    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def open_journal(out: str | Path | None, settings: Mapping[str, Any]) -> Journal:
    """Open a run's folder, new or of the same run.

    Args:
        out: The folder; None for a run that leaves no files.
        settings: What the run's result depends on.

    Raises:
        RunError: The folder holds another run or other files, or cannot be made.
    """
    if out is None:
        return Journal()
    folder = Path(out)
    wanted = json.dumps(settings, sort_keys=True, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = (folder / SETTINGS).read_text(errors="replace") if (folder / SETTINGS).is_file() else None
        strangers = sorted(p.name for p in folder.iterdir() if p.name != STEPS and p.suffix != ".tmp")
    except OSError as error:
        raise RunError(
            f"Cannot use {str(folder)!r} as a run folder: {error.strerror}. Choose another with --out."
        ) from error
    if found is None and strangers:
        raise RunError(f"Folder {str(folder)!r} holds other files ({strangers[0]!r}). Choose an empty one with --out.")
    if found is None:
        write_atomically(folder / SETTINGS, wanted)
    elif found != wanted:
        raise RunError(
            f"Folder {str(folder)!r} holds another run ({_difference(found, settings)}). Choose another with --out."
        )
    (folder / STEPS).mkdir(exist_ok=True)
    return Journal(folder)


def environment_of(folder: Path) -> EnvSpec | None:
    """Return the environment that a run's folder knows; None where the folder is not one of a run.

    Raises:
        RunError: The file that says it is damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["env"]
        wrappers = tuple((str(name), dict(kwargs)) for name, kwargs in told["wrappers"])
        return EnvSpec(str(told["id"]), dict(told["kwargs"]), wrappers, int(told.get("frame_stack", 1)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}). Give the environment with --env.") from error


def recall(journal: Journal, name: str) -> Step | None:
    """Return a step that was recorded, or None.

    Raises:
        RunError: Its file is damaged.
    """
    path = _path(journal, name)
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            known = file.metadata() or {}
            data, order = json.loads(known["data"]), json.loads(known["order"])
            return Step(data, {key: file.get_tensor(key) for key in order})
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise RunError(
            f"Step file {str(path)!r} is damaged ({error}). Remove it; the run computes it again."
        ) from error


def record(journal: Journal, name: str, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Remember a finished step.

    Raises:
        RunError: It cannot be written; what was there before stays.
    """
    path = _path(journal, name)
    if path is not None:
        # Cloned, because the format refuses tensors that share memory, as the masks of a network and its target do.
        whole = {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
        known = {"data": json.dumps(data), "order": json.dumps(list(whole))}  # the file itself sorts them
        write_atomically(path, save(whole, metadata=known))


def _path(journal: Journal, name: str) -> Path | None:
    return None if journal.folder is None else journal.folder / STEPS / f"{name}.safetensors"


def _difference(found: str, settings: Mapping[str, Any]) -> str:
    try:
        old = json.loads(found)
    except (ValueError, RecursionError):
        return f"its {SETTINGS} is damaged"
    if not isinstance(old, dict):
        return f"its {SETTINGS} is damaged"
    new = json.loads(json.dumps(settings))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            return f"its {key} is {old.get(key)!r}, now {new.get(key)!r}"
    return "its settings differ"
