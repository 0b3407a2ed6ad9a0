"""Policy classes of a user's own: accepted where they add nothing to the library's class that they inherit from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """Return a note on a user's policy, once its parts are those of the library's policy.

    Raises:
        LoadError: They differ.
    """
    parts, wanted = (dict(p.named_children()) for p in (own, policy))
    names = [n for n in parts | wanted if repr(parts.get(n)) != repr(wanted.get(n))]
    if names:
        raise LoadError(
            f"{path}: its policy class {type(own).__name__} builds another {names[0]!r} than {type(policy).__name__}. "
            "Give its network with prunerl.from_module, or put what is special into a features extractor."
        )
    return f"Its policy class {type(own).__name__} is saved as {type(policy).__name__}, to which it adds nothing."


def _overridden(cls: type) -> list[str]:
    """Return what a class, or a parent that is not the library's, overrides of the library's class."""
    library = next((p for p in cls.__mro__ if p.__module__.split(".", maxsplit=1)[0] in _LIBRARIES), object)
    own = cls.__mro__[: cls.__mro__.index(library)]
    return sorted(
        {n for parent in own for n in vars(parent) if n in dir(library) and not n.startswith(("__", "_abc_"))}
    )
