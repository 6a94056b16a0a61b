"""What a run tells a tracker: loss while it trains, then scores, settings, the answer, figures.

``tracking=tensorboard`` writes TensorBoard's files into the run folder; of a sweep
``tensorboard --logdir`` shows each job as a run of its own. Without it nothing of it is imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

from fedcats.config.schema import Config
from fedcats.errors import UserError
from fedcats.report import cautions, verdict, view
from fedcats.report.estimate import FINISHED
from fedcats.results import Results

_WORDS = re.compile(r"[^\w/.-]+")


class Tracker:
    """Takes note of nothing."""

    def loss(self, task: str, epoch: int, loss: float, state: str) -> None:
        """Mean training loss of an epoch of what is trained."""

    def results(self, results: Results, folder: Path) -> None:
        """All that came out, when the run folder is complete."""


class TensorBoard(Tracker):
    """Writes ``tensorboard/`` in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))
        self._last: dict[str, int] = {}

    def loss(self, task: str, epoch: int, loss: float, state: str) -> None:
        """As a scalar, each epoch once; what was found in the store was trained by another run."""
        if (state in FINISHED and state != "done") or self._last.get(task) == epoch:
            return
        self._last[task] = epoch
        self._scalar(f"loss/{task}", loss, epoch)

    def results(self, results: Results, folder: Path) -> None:
        """Scores as scalars, configuration and answer as text, figures as images."""
        import numpy as np
        from PIL import Image

        for name, model in view.ordered(results).items():
            for key in view.MEASURES:
                self._scalar(f"test_{key}/{name}", model[key], 0)
        texts = {
            "answer": " ".join([*cautions.warnings(results), *verdict.answer(results)]),
            "config": f"```\n{json.dumps(results['config'], indent=1)}\n```",
        }
        for name, text in texts.items():
            self.writer.add_text(name, text, 0)
        for path in sorted((folder / "figures").glob("*.png")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.writer.add_image(path.stem, pixels, 0, dataformats="HWC")

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self.writer.add_scalar(_WORDS.sub("_", tag), value, step)


@contextlib.contextmanager
def tracking(config: Config, folder: Path) -> Iterator[Tracker]:
    """The configuration's tracker, closed at the end.

    Raises
    ------
    UserError
        When its package is not installed.
    """
    if config.tracking == "none":
        yield Tracker()
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tracking=tensorboard: the package tensorboard is not installed; allowed is none, or "
            "pip install tensorboard"
        )
    tracker = TensorBoard(folder / "tensorboard")
    try:
        yield tracker
    finally:
        tracker.writer.close()
