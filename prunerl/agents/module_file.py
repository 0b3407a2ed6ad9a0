"""A pruned module on disk: a safetensors file of its tensors, with what says how it is used in its metadata.

What is needed only to train on (optimizer moments and masks) lies in a second file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunerl.errors import LoadError
from prunerl.files import write_atomically
from prunerl.types import VERSION, Agent, EnvSpec, FloatArray, Head, Normalizer, State

FORMAT = "prunerl module 1"


def save(path: str | Path, agent: Agent, targets: Mapping[str, str]) -> None:
    """Write an agent's file, and the one for training beside it where there is something for it.

    Raises:
        RunError: A file cannot be written.
    """
    from safetensors.torch import save as packed

    policy, state = agent.policy, agent.state
    data = {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": agent.algorithm,
        "env": {
            "id": agent.env.id,
            "kwargs": dict(agent.env.kwargs),
            "wrappers": [[path, dict(kwargs)] for path, kwargs in agent.env.wrappers],
            "frame_stack": agent.env.frame_stack,
        },
        "head": _plain(policy.head),
        "normalizer": None if policy.normalizer is None else _plain(policy.normalizer),
        "masked": policy.masked,
        "stacks": list(agent.stacks),
        "targets": dict(targets),
        "shapes": {n: list(t.shape) for n, t in state.tensors.items()},
    }
    moments = {f"moments/{k}/{n}": m for n, entries in state.moments.items() for k, m in entries.items()}
    held = {f"masks/{n}": m for n, m in state.masks.items()}
    training = Path(path).with_name(f"{Path(path).stem}_training.safetensors")
    if moments or held:
        write_atomically(training, packed(_separate({**moments, **held})))
    else:
        training.unlink(missing_ok=True)  # of an agent that was there before
    try:
        text = json.dumps(data, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"The environment's arguments are not plain data ({error}). Register an id that needs none."
        ) from error
    write_atomically(path, packed(_separate(state.tensors), metadata={"prunerl": text}))


def read(path: str | Path) -> tuple[dict[str, Any], State]:
    """Read an agent's file as data.

    Returns:
        ``env``, ``head``, ``normalizer`` as nouns and the other settings; and the tensors.

    Raises:
        LoadError: It is not such a file.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            data = json.loads((file.metadata() or {})["prunerl"])
        tensors = load_file(path)
        beside = path.with_name(f"{path.stem}_training.safetensors")
        training = load_file(beside) if beside.is_file() else {}
        if data["format"] != FORMAT:
            raise LoadError(f"{path} says that it is a {data['format']!r}, this version reads {FORMAT!r}.")
        env = data["env"]
        wrappers = tuple((str(name), dict(kwargs)) for name, kwargs in env["wrappers"])
        settings = {
            "algorithm": str(data["algorithm"]),
            "env": EnvSpec(str(env["id"]), dict(env["kwargs"]), wrappers, int(env["frame_stack"])),
            "head": _head(data["head"]),
            "normalizer": None if data["normalizer"] is None else _normalizer(data["normalizer"]),
            "masked": bool(data["masked"]),
            "stacks": tuple(str(s) for s in data["stacks"]),
            "targets": {str(s): str(t) for s, t in data["targets"].items()},
        }
    except LoadError:
        raise
    except Exception as error:  # a file can hold anything
        raise LoadError(
            f"{path} is not a file that a module agent wrote ({type(error).__name__}: {error}). "
            "Give the file that agent.save() made."
        ) from error
    return settings, State(tensors, *_split(training))


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as safetensors demands."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _split(training: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    moments: dict[str, dict[str, Tensor]] = {}
    held: dict[str, Tensor] = {}
    for name, tensor in training.items():
        kind, _, rest = name.partition("/")
        if kind == "masks":
            held[rest] = tensor
        else:
            key, _, parameter = rest.partition("/")
            moments.setdefault(parameter, {})[key] = tensor
    return moments, held


def _plain(noun: Head | Normalizer) -> dict[str, Any]:
    return {name: _entry(value) for name, value in vars(noun).items()}


def _entry(value: Any) -> Any:
    """Write arrays as nested lists of text: JSON has no infinity, and bounds of actions can be infinite."""
    if isinstance(value, np.ndarray):
        numbers = [repr(float(x)) for x in value.ravel()]
        return {"array": numbers, "shape": list(value.shape), "dtype": value.dtype.name}
    return list(value) if isinstance(value, tuple) else value


def _array(value: Any) -> FloatArray | None:
    if value is None:
        return None
    if value["dtype"] not in ("float32", "float64", "bool"):
        raise ValueError(f"an array of {value['dtype']}")
    return np.array([float(x) for x in value["array"]]).astype(value["dtype"]).reshape(value["shape"])


def _head(data: Mapping[str, Any]) -> Head:
    if data["kind"] not in ("categorical", "q_values", "bernoulli", "gaussian"):
        raise ValueError(f"head {data['kind']!r} is not known")
    low, high = (_array(data[name]) for name in ("low", "high"))
    sizes, shape = (tuple(int(n) for n in data[name]) for name in ("sizes", "shape"))
    return Head(data["kind"], sizes, low, high, _array(data["std"]), bool(data["squashed"]), shape)


def _normalizer(data: Mapping[str, Any]) -> Normalizer:
    mean, var, where = (_array(data[name]) for name in ("mean", "var", "where"))
    if mean is None or var is None:
        raise ValueError("a normalizer needs mean and var")
    return Normalizer(mean, var, float(data["epsilon"]), float(data["clip"]), None if where is None else where > 0)
