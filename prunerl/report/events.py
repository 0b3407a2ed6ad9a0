"""Write a report as TensorBoard events."""

from __future__ import annotations

from pathlib import Path

from prunerl.errors import RunError
from prunerl.report.cells import best_stage
from prunerl.types import Report, Round


def write_events(report: Report, folder: str | Path) -> None:
    """Write the scalars of each round to ``folder``, at the round's index as the step.

    Events of an earlier report in that folder are replaced: TensorBoard would draw both as one zigzag.

    Raises:
        RunError: The folder cannot be written to.
    """
    from stable_baselines3.common.logger import configure

    folder = Path(folder)
    try:
        earlier = tuple(folder.glob("events.out.tfevents.*"))
        logger = configure(str(folder), ["tensorboard"])
        for each in report.rounds:
            for name, value in _scalars(each).items():
                logger.record(name, value)
            logger.dump(step=each.index)
        logger.close()
        for file in earlier:
            file.unlink()
    except OSError as error:
        raise RunError(
            f"Cannot write TensorBoard events to {str(folder)!r}: {error.strerror or error}. "
            "Free some space, or choose a folder that can be written to."
        ) from error


def _scalars(each: Round) -> dict[str, float]:
    verdict = best_stage(each).verdict
    return {
        "prune/parameters": each.size.parameters,
        "prune/nonzeros": each.size.nonzeros,
        "prune/normalized_return": verdict.normalized,
        "prune/interval_low": verdict.interval[0],
        "prune/interval_high": verdict.interval[1],
        "prune/satisfied": float(each.satisfied),
        **{f"prune/divergence/{stage.name}": stage.divergence for stage in each.stages},
        "time/seconds": each.seconds,
        "time/env_steps": each.env_steps,
    }
