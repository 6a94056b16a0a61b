"""One seed for the whole experiment, and from it one for every random draw."""

import hashlib


def derive_seed(seed: int, *labels: int | str) -> int:
    """Seed for one purpose, independent of every other purpose.

    Parameters
    ----------
    seed
        The experiment's seed (``seed`` in the configuration).
    *labels
        What the draw is for, e.g. ``("train", round, client)``.

    Returns
    -------
    int
        63 bits of the SHA-256 of seed and labels: the same on every machine, and unrelated for
        labels that differ in anything.
    """
    text = "/".join([str(seed), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
