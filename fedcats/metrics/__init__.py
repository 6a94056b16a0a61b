"""Scores of one model, comparisons on the same photos, verdicts over seeds, predictions on disk.

scipy and scikit-learn are imported where they are used: a run needs them only after its training,
and they take longer to import than the data takes to be found.
"""

from fedcats.metrics.files import Predictions, read_predictions, write_predictions
from fedcats.metrics.paired import compare, paired_interval
from fedcats.metrics.scores import NOT_FINITE, POSITIVE, scores, wilson

__all__ = [
    "NOT_FINITE",
    "POSITIVE",
    "Predictions",
    "compare",
    "paired_interval",
    "read_predictions",
    "scores",
    "wilson",
    "write_predictions",
]
