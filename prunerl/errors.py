"""Errors. Each message says what is wrong, where, what was got and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(Exception):
    """Base of every error that this package raises on purpose."""


class LoadError(PruneError, ValueError):
    """A file cannot be read as a trained agent."""


class TrustError(LoadError):
    """A file can only be read by running code from it, which was not allowed."""


class SpaceError(PruneError, ValueError):
    """An agent and an environment do not fit each other."""


class EnvironmentFailure(PruneError, RuntimeError):
    """An environment cannot be made, or failed while it was being stepped."""


class TraceError(PruneError, NotImplementedError):
    """A network contains an operator without a rule."""


class LowerError(PruneError, ValueError):
    """A policy contains what a deployed program does not have."""


class NameUnknownError(PruneError, ValueError):
    """A criterion, schedule or another choice is not known by that name."""


class BudgetError(PruneError, ValueError):
    """A sparsity, a tolerance or another amount cannot be met."""


class RemovalError(PruneError, ValueError):
    """A decision cannot be applied, or its result is not what the masked original computes."""


class LearnError(PruneError, NotImplementedError):
    """An agent cannot be trained on."""


class CheckError(PruneError, AssertionError):
    """An adapter of an RL library breaks an invariant."""


class TargetError(PruneError, ValueError):
    """A device's profile cannot be read, or a policy does not fit the device."""


class RunError(PruneError, OSError):
    """A run folder cannot be read, written or continued."""


class BuildError(PruneError, RuntimeError):
    """A policy cannot be compiled for this machine."""


class ExportError(PruneError, ValueError):
    """A policy cannot be written as a file of some format, or the file does not act as the policy."""


class LearnWarning(UserWarning):
    """A training does less than was asked of it, or ends otherwise than one would expect."""


def unknown(kind: str, got: str, choices: Iterable[str]) -> NameUnknownError:
    """Build the error for a name that is not among ``choices``, with the nearest one."""
    names = sorted(choices)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return NameUnknownError(f"Unknown {kind} {got!r}.{hint} Choose from: {', '.join(names)}.")
