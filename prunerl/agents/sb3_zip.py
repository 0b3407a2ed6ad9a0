"""Read a Stable-Baselines3 zip as data: tensors and settings that are plain, from its JSON; no pickle runs."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunerl.agents import inert, sb3_extractors, torch_file
from prunerl.errors import LoadError, TrustError

MAX_JSON = 16 * 2**20
MAX_TENSORS = 2**31
UNPACKED, INFLATION = 2**20, 100
"""An entry that is larger than the first may be so many times as large as in the zip; weights hardly shrink."""

SERIALIZED = ":serialized:"
OPTIMIZERS = ("policy.optimizer", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer")


@dataclass(frozen=True, eq=False)
class Contents:
    """What a zip holds.

    Attributes:
        path: Where it was read.
        algorithm: Its name, one of ``sb3_algorithms.ALGORITHMS``.
        data: The JSON settings; what was pickled is a dict with the key ``:serialized:``.
        tensors: The policy's state dict.
        optimizers: Name of the entry, such as ``actor.optimizer``, → the optimizer's state dict.
        variables: Tensors besides the policy's, such as ``log_ent_coef``.
    """

    path: Path
    algorithm: str
    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    optimizers: Mapping[str, Any]
    variables: Mapping[str, Tensor]


def read_zip(path: Path, algorithm: str | None = None) -> Contents:
    """Read a zip without running code from it.

    Args:
        path: The zip.
        algorithm: Its algorithm, when known; must agree with what the zip says.

    Raises:
        LoadError: Not a zip, truncated, not from Stable-Baselines3, of another algorithm, NaN or infinite weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = _settings(_entry(archive, path, "data", MAX_JSON), path)
            names = [*(f"{o}.pth" for o in OPTIMIZERS), "pytorch_variables.pth", "tensors.pth"]
            found = {
                name.removesuffix(".pth"): _torch(_entry(archive, path, name, MAX_TENSORS), path, name)
                for name in ("policy.pth", *(n for n in names if n in archive.namelist()))
            }
    except LoadError:
        raise
    except FileNotFoundError as error:
        raise LoadError(f"No file at {path}. Give the path of a Stable-Baselines3 zip.") from error
    except IsADirectoryError as error:
        raise LoadError(f"{path} is a folder, not a Stable-Baselines3 zip. Give the zip inside it.") from error
    except Exception as error:  # a hostile or broken zip can raise anything
        raise LoadError(
            f"{path} is not a readable zip ({inert.reason(error)}). Save the agent again, or copy it again."
        ) from error
    tensors = found.pop("policy")
    _check_tensors(path, tensors)
    for name, entry in found.items():
        _check_finite(path, f"{name}.pth", entry)
    optimizers = {name: found[name] for name in OPTIMIZERS if name in found}
    variables = _variables(path, found)
    return Contents(path, _algorithm(path, data, tensors, algorithm), data, tensors, optimizers, variables)


def _settings(text: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: entry 'data' is not JSON ({inert.reason(error)}). Save the agent again.") from error
    if not isinstance(data, dict):
        raise LoadError(f"{path}: entry 'data' is not a JSON object. Save the agent again.")
    return data


def _entry(archive: zipfile.ZipFile, path: Path, name: str, limit: int) -> bytes:
    """Return what an entry holds; how much that is, is known before it is unpacked."""
    infos = [info for info in archive.infolist() if info.filename == name]
    if not infos:
        raise LoadError(
            f"{path} has no entry {name!r}, so it is not a Stable-Baselines3 agent, or not all of one. "
            "Save one with model.save(), or copy it again."
        )
    if len(infos) > 1:
        raise LoadError(f"{path} has {len(infos)} entries {name!r}. Save the agent again.")
    info = infos[0]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
        raise LoadError(f"{path}: entry {name!r} is compressed in an unusual way. Save the agent again.")
    packed = min(info.compress_size, path.stat().st_size)
    most = min(limit, max(UNPACKED, INFLATION * packed) if info.compress_type else packed)
    if info.file_size > most:
        raise LoadError(f"{path}: entry {name!r} claims {info.file_size:,} bytes; at most {most:,} are read.")
    return archive.read(info)


def _torch(blob: bytes, path: Path, name: str) -> Any:
    try:
        return torch_file.read(blob)
    except Exception as error:  # whatever the broken file triggers
        raise LoadError(
            f"{path}: entry {name!r} does not hold plain tensors ({inert.reason(error)}). Save the agent again."
        ) from error


def _check_tensors(path: Path, tensors: Any) -> None:
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in tensors.items()
    ):
        raise LoadError(f"{path}: entry 'policy.pth' is not a state dict of tensors. Save the agent again.")
    for name, tensor in tensors.items():
        _check_finite(path, name, tensor)


def _check_finite(path: Path, name: str, value: Any) -> None:
    """Check every tensor in a value, such as an optimizer's state."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_finite(path, f"{name}/{key}" if isinstance(key, str | int) else name, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_finite(path, name, part)
    elif isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise LoadError(
            f"{path}: tensor {name!r} holds {bad} NaN or infinite values. "
            "Take a checkpoint from before training diverged."
        )


def _variables(path: Path, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors besides the policy's; the file's name has changed over the years."""
    found = entries.get("pytorch_variables", entries.get("tensors")) or {}
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor | None) for v in found.values()):
        raise LoadError(f"{path}: entry 'pytorch_variables.pth' does not hold tensors. Save the agent again.")
    return {str(name): value.detach() for name, value in found.items() if value is not None}


def _algorithm(path: Path, data: Mapping[str, Any], tensors: Mapping[str, Tensor], given: str | None) -> str:
    module = str(_dict(data.get("policy_class")).get("__module__", ""))
    found = next((name for name, fits in SIGNS.items() if fits(module, data, tensors)), None)
    if found is None:
        raise LoadError(
            f"{path} is not an agent of Stable-Baselines3 or sb3-contrib that is known (policy class from "
            f"{module or 'an unknown module'!r})."
        )
    alike = {found, given} <= {"td3", "ddpg"}  # the same networks and settings under two names
    if given is not None and given != found and not alike:
        raise LoadError(
            f"{path} is a {found.upper()} agent, but algorithm {given!r} was asked for. Use --algo {found}."
        )
    return given or found


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _is_ddpg(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    single = not _has(tensors, "critic.qf1.")
    return single and data.get("policy_delay") == 1 and data.get("target_noise_clip") == 0


SIGNS: Mapping[str, Callable[[str, Mapping[str, Any], Mapping[str, Tensor]], bool]] = {
    "ars": lambda module, data, tensors: "n_delta" in data and _has(tensors, "action_net."),
    "trpo": lambda module, data, tensors: "cg_max_steps" in data,
    "ppo_lstm": lambda module, data, tensors: "clip_range" in data and _has(tensors, "lstm_actor."),
    "ppo_mask": lambda module, data, tensors: "clip_range" in data and ".maskable." in f"{module}.",
    "ppo": lambda module, data, tensors: "clip_range" in data and "gae_lambda" in data,
    "a2c": lambda module, data, tensors: "gae_lambda" in data and "vf_coef" in data,
    "dqn": lambda module, data, tensors: "exploration_rate" in data and _has(tensors, "q_net."),
    "qrdqn": lambda module, data, tensors: "exploration_rate" in data and _has(tensors, "quantile_net."),
    "tqc": lambda module, data, tensors: "top_quantiles_to_drop_per_net" in data,
    "crossq": lambda module, data, tensors: "target_entropy" in data and not _has(tensors, "critic_target."),
    "sac": lambda module, data, tensors: "target_entropy" in data and _has(tensors, "critic_target."),
    "ddpg": lambda module, data, tensors: "target_policy_noise" in data and _is_ddpg(data, tensors),
    "td3": lambda module, data, tensors: "target_policy_noise" in data and _has(tensors, "actor_target."),
}
"""Algorithm → whether a zip is one of its, by its policy's module, its settings and its tensors; the first counts."""

ACTIVATIONS = {
    name: getattr(nn, name)
    for name in (
        "ReLU Tanh ELU LeakyReLU SiLU GELU Sigmoid Softplus Mish SELU Hardtanh ReLU6 CELU Softsign Identity "
        "Hardswish Hardsigmoid Hardshrink Softshrink Tanhshrink LogSigmoid PReLU"
    ).split()
}
PLAIN_POLICY_KWARGS = frozenset(
    "ortho_init log_std_init use_sde full_std use_expln squash_output normalize_images share_features_extractor "
    "optimizer_kwargs clip_mean batch_norm_momentum batch_norm_eps renorm_warmup_steps lstm_kwargs "
    "features_extractor_kwargs".split()
)
INFERRED = frozenset(
    "net_arch device sde_net_arch n_critics n_quantiles lstm_hidden_size n_lstm_layers shared_lstm enable_critic_lstm "
    "with_bias batch_norm".split()
)
"""What is read off the tensors' names and shapes."""


EXTRACTORS = {f"stable_baselines3.common.torch_layers.{name}": known for name, known in sb3_extractors.STANDARD.items()}
NARROWED = f"{sb3_extractors.Narrowed.__module__}.{sb3_extractors.Narrowed.__qualname__}"


def policy_kwargs(contents: Contents) -> dict[str, Any]:
    """Return the policy's keyword arguments as far as the JSON says them; widths are read off the tensors instead.

    Raises:
        TrustError: An argument is neither plain nor a known class of PyTorch or Stable-Baselines3.
    """
    raw = contents.data.get("policy_kwargs") or {}
    result: dict[str, Any] = {}
    for key, value in raw.items():
        if key in (":type:", SERIALIZED) or key in INFERRED:
            continue
        if key in ("activation_fn", "optimizer_class", "features_extractor_class"):
            result[key] = _known_class(contents.path, key, value)
        elif key not in PLAIN_POLICY_KWARGS or not _is_plain(key, value):
            raise _untrusted(contents.path, f"policy_kwargs[{key!r}]")
        else:
            result[key] = value
    return unwrapped(result, contents.path)


def unwrapped(kwargs: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a policy's keyword arguments with the extractor's own class in place of our wrapper of it."""
    result = dict(kwargs)
    found = result.get("features_extractor_class")
    if found != NARROWED and getattr(found, "__module__", "") + "." + getattr(found, "__qualname__", "") != NARROWED:
        return result
    inner = result.get("features_extractor_kwargs") or {}
    base = inner.get("base")
    if isinstance(base, str) and base not in sb3_extractors.STANDARD:
        raise _untrusted(path, f"policy_kwargs['features_extractor_kwargs']['base'] = {base}")
    result["features_extractor_class"] = sb3_extractors.STANDARD[base] if isinstance(base, str) else base
    result["features_extractor_kwargs"] = dict(inner.get("base_kwargs") or {})
    return result


def is_narrowed(kwargs: Mapping[str, Any]) -> bool:
    """Return whether a policy's saved keyword arguments say that its extractor has other widths than its class."""
    return NARROWED in str(kwargs.get("features_extractor_class"))


def _known_class(path: Path, key: str, value: Any) -> Any:
    """Return the class behind its name, ours for a narrowed extractor as its name."""
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    name = _class_name(value)
    last, module = name.rpartition(".")[2], name.rpartition(".")[0]
    if key == "features_extractor_class" and (name in EXTRACTORS or name == NARROWED):
        return EXTRACTORS.get(name, NARROWED)
    if key == "activation_fn" and last in ACTIVATIONS and module.startswith("torch.nn."):
        return ACTIVATIONS[last]
    if key == "optimizer_class" and last in ("Adam", "AdamW", "RMSprop", "SGD") and module.startswith("torch.optim."):
        return getattr(torch.optim, last)
    if key == "optimizer_class" and last == "RMSpropTFLike" and module.startswith("stable_baselines3."):
        return RMSpropTFLike
    raise _untrusted(path, f"policy_kwargs[{key!r}] = {value}")


def _is_plain(key: str, value: Any) -> bool:
    """Say whether a value is the data itself; what JSON cannot hold stands there as a text that describes it."""
    if key.endswith("_kwargs"):
        return value is None or (isinstance(value, dict) and SERIALIZED not in value)
    return not isinstance(value, dict)


_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"


def schedule(value: Any) -> Any:
    """Return the number or the linear schedule behind an entry, or None when only its pickle knows it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = str(_dict(value).get("value_schedule", value if isinstance(value, str) else ""))
    match = re.fullmatch(rf"ConstantSchedule\(val={_NUMBER}\)", text)
    if match:
        return float(match.group(1))
    match = re.fullmatch(rf"LinearSchedule\(start={_NUMBER}, end={_NUMBER}, end_fraction={_NUMBER}\)", text)
    if match is None:
        return None
    from stable_baselines3.common.utils import LinearSchedule

    return LinearSchedule(*(float(number) for number in match.groups()))


def train_frequency(value: Any) -> int | tuple[int, str] | None:
    """Return how often a DQN trains, in steps or as a number and its unit; None when that is not to be read."""
    if isinstance(value, int):
        return value
    if isinstance(value, dict):  # a pickled pair of a number and an enumeration's value
        try:
            pair = inert.read(base64.b64decode(str(value.get(SERIALIZED))), "train_freq").arguments
            value = [pair[0], pair[1].arguments[-1]]
        except (TrustError, AttributeError, LookupError, ValueError):
            return None
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], int) and value[1] in ("step", "episode"):
        return value[0], value[1]
    return None


def vec_normalize(path: Path) -> dict[str, Any]:
    """Read a ``vecnormalize.pkl`` as data: its settings, and the arrays of ``obs_rms`` and ``ret_rms``."""
    try:
        with path.open("rb") as file:
            root = inert.read(file.read(inert.MAX_BYTES + 1), str(path))
    except OSError as error:
        raise LoadError(
            f"Statistics {path} cannot be read: {error.strerror}. Give the file of VecNormalize.save()."
        ) from error
    fields = getattr(root, "fields", {})
    try:
        found = {name: _statistics(fields.get(name)) for name in ("obs_rms", "ret_rms")}
        for name in ("clip_obs", "clip_reward", "gamma", "epsilon"):
            _numbers(fields.get(name, 1.0))
    except (TypeError, ValueError, RecursionError) as error:
        raise LoadError(
            f"{path} holds statistics that are not numbers ({inert.reason(error)}). Save them again."
        ) from error
    if fields.get("norm_obs", True) and not found["obs_rms"]:
        raise LoadError(
            f"{path} holds no observation statistics of a VecNormalize. Save them with VecNormalize.save()."
        )
    plain = ("clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs", "norm_reward", "norm_obs_keys")
    return {**{key: fields[key] for key in plain if fields.get(key) is not None}, **found}


def _statistics(rms: Any) -> dict[str, Any]:
    """Return mean, variance and count; of a dict of observations one such dict for each key."""
    if isinstance(rms, dict):
        return {str(key): _statistics(part) for key, part in rms.items()}
    fields = getattr(rms, "fields", {})
    if "mean" not in fields or "var" not in fields:
        return {}
    if np.shape(_numbers(fields["mean"])) != np.shape(_numbers(fields["var"])) or np.min(fields["var"], initial=0) < 0:
        raise ValueError("a mean and a variance that do not fit each other")
    return {"mean": fields["mean"], "var": fields["var"], "count": _numbers(fields.get("count", 1.0))}


def _numbers(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic | int | float) or not np.all(np.isfinite(value)):
        raise ValueError("a value that is not a finite number")
    return value


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _class_name(value: Any) -> str:
    match = re.fullmatch(r"<class '([\w.]+)'>", str(value))
    return match.group(1) if match else str(value)


def _untrusted(path: Path, what: str) -> TrustError:
    return TrustError(
        f"{path}: {what} can only be read by running code from the zip. "
        "If you trust its author, allow that with --trust (trust=True)."
    )
