"""Scalars for TensorBoard, written by rank 0 (docs/seeing.md lists them)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wagma.errors import InputError, MissingDependencyError
from wagma.seeing import Figures

#: Scalars of single ranks are written for so many at most: more would be no help, and cost rank 0 time.
MOST_RANKS = 64


def check_tensorboard(folder: str | Path) -> Any:
    """The class SummaryWriter. Raises MissingDependencyError without TensorBoard, InputError if the folder cannot be one."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            f"tensorboard = {str(folder)!r}: needs TensorBoard, which is not installed: pip install tensorboard"
        ) from error
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"tensorboard = {str(folder)!r}: is no folder that can be written: {error.strerror}") from error
    return SummaryWriter


class Board:
    """A folder of events. Raises MissingDependencyError and InputError as `check_tensorboard` does."""

    def __init__(self, folder: str | Path) -> None:
        self._writer: Any = check_tensorboard(folder)(str(folder))

    def add(self, iteration: int, run: Figures, lately: Figures) -> None:
        """A point of each scalar. run: since the beginning; lately: since a while ago."""
        what = "samples" if run.of("samples").any() else "iterations"
        scalars: dict[str, float | None] = {
            "wagma/loss": lately.loss,
            f"wagma/{what}_per_s": lately.rate(what),
            "wagma/staleness_max": float(run.of("stalest").max()) if run.of("contributions").any() else None,
            "wagma/staleness_mean": lately.staleness_mean,
            "wagma/fresh_fraction": lately.fresh,
            "wagma/waiting_fraction": lately.waiting,
        }
        if len(run.rows) <= MOST_RANKS:
            for rank, (late, own) in enumerate(zip(lately.late_share, lately.own_s, strict=True)):
                scalars[f"wagma_late_fraction/rank_{rank}"] = float(late)
                scalars[f"wagma_own_part_s/rank_{rank}"] = float(own)
        for name, value in scalars.items():
            if value is not None and not (math.isnan(value) and name != "wagma/loss"):  # a loss that is none has to be seen
                self._writer.add_scalar(name, value, iteration)

    def close(self, summary: str | None = None) -> None:
        """Write all that is left, the summary as text among it."""
        if summary is not None:
            # TensorBoard shows Markdown: four spaces keep the columns.
            self._writer.add_text("wagma/summary", "\n".join(f"    {text}" for text in summary.splitlines()))
        self._writer.close()
