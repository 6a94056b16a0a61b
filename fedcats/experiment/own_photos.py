"""What models answer on the photos that clients trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcats.experiment.predictions import Candidate, Predictor, Probabilities


def on_own_photos(
    predictor: Predictor, candidates: Sequence[Candidate]
) -> list[list[Probabilities]]:
    """For each model and client the class probabilities of what that client trained on.

    Returns
    -------
    list of list of ndarray
        (n_i, classes) float32, in the order of ``inputs.shards[i]``; from the store where they
        were computed before. Without augmentation, as at a test.
    """
    inputs = predictor.inputs
    everything = inputs.dataset.train.subset(np.concatenate(inputs.shards))
    ends = np.cumsum([len(shard) for shard in inputs.shards])[:-1]
    predicted = predictor.predict(candidates, [everything])
    return [np.split(one, ends) for (one,) in predicted]
