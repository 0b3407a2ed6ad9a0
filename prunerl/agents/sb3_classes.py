"""Policy classes of a user's own: accepted where they add nothing to the library's class that they inherit from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from prunerl.agents import sb3_zip
from prunerl.errors import LoadError, TrustError

_LIBRARIES = ("stable_baselines3", "sb3_contrib")


def own_class(contents: sb3_zip.Contents, trusted: Mapping[str, Any] | None) -> Any:
    """Return the class of the user's own that an agent's policy is of; None where it is one of the library's.

    Args:
        contents: The zip.
        trusted: What its pickles hold; None where they must not be run.

    Raises:
        TrustError: There is one, and ``trusted`` is None.
        LoadError: It overrides what the library's class does.
    """
    found = contents.data.get("policy_class")
    module = str(found.get("__module__", "stable_baselines3")) if isinstance(found, dict) else "stable_baselines3"
    if module.split(".", maxsplit=1)[0] in _LIBRARIES:
        return None
    cls = (trusted or {}).get("policy_class")
    if not isinstance(cls, type):
        raise TrustError(
            f"{contents.path}: its policy is a class of {module!r}, which can only be read by running code from the "
            "zip. If you trust its author, allow that with --trust (trust=True)."
        )
    changed = _overridden(cls)
    if changed:
        raise LoadError(
            f"{contents.path}: its policy class {cls.__name__} overrides {', '.join(changed)}, and what that computes "
            "is not known. Give its network with prunerl.from_module, or put what is special into a features extractor."
        )
    return cls


def check_alike(own: Any, policy: Any, path: object) -> str:
    """Return a note on a user's policy, once it is built and acts as the library's policy with the same tensors.

    Raises:
        LoadError: They differ.
    """
    different = _different(own, policy)
    if different is not None:
        raise LoadError(
            f"{path}: its policy class {type(own).__name__} {different} than {type(policy).__name__}. "
            "Give its network with prunerl.from_module, or put what is special into a features extractor or into "
            "policy_kwargs."
        )
    return f"Its policy class {type(own).__name__} is saved as {type(policy).__name__}, to which it adds nothing."


def _different(own: Any, policy: Any) -> str | None:
    """Say what a policy builds or does otherwise: modules, attributes such as optimizers, frozen layers, actions."""
    parts, wanted = (dict(p.named_modules()) for p in (own, policy))
    for name in parts | wanted:
        first, second = parts.get(name), wanted.get(name)
        if name and repr(first) != repr(second):
            return f"builds another {name!r}"
        attributes, usual = vars(first), vars(second)
        for attribute, value in usual.items():
            plain = type(value).__module__ == "builtins"  # such as widths, which the tensors say
            if not plain and type(attributes.get(attribute)) is not type(value):
                return f"has another {f'{name}.{attribute}'.lstrip('.')!r}"
        replaced = sorted(n for n in attributes.keys() - usual.keys() if callable(getattr(type(second), n, None)))
        if replaced:
            return f"has another {f'{name}.{replaced[0]}'.lstrip('.')!r}"
    for (name, mine), theirs in zip(own.named_parameters(), policy.parameters(), strict=True):
        if mine.requires_grad != theirs.requires_grad:
            return f"trains other parameters, {name!r},"
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    for _ in range(8):
        seen = space.sample()
        acts, usually = (p.predict(seen, deterministic=True)[0] for p in (own, policy))
        if not np.array_equal(acts, usually, equal_nan=True):
            return "acts otherwise"
    return None


def _overridden(cls: type) -> list[str]:
    """Return what a class, or a parent that is not the library's, overrides of the library's class."""
    library = next((p for p in cls.__mro__ if p.__module__.split(".", maxsplit=1)[0] in _LIBRARIES), object)
    own = cls.__mro__[: cls.__mro__.index(library)]
    return sorted(
        {n for parent in own for n in vars(parent) if n in dir(library) and not n.startswith(("__", "_abc_"))}
    )
