"""Names that a configuration chooses from; without torch, so that the command line starts fast."""

FOLDS = ("polyak", "fedavg", "uniform")
"""Rules that are a fold: `fedcats.core.merging`."""

STARTS = ("first", "global")
"""Where a Polyak average starts: `fedcats.core.merging.polyak`."""

SERVER_OPTIMIZERS = ("fedavgm", "fedadam")
"""`fedcats.core.server_optimizer`."""

ROBUST = ("median", "trimmed_mean", "krum")
"""`fedcats.core.robust`."""

ATTACKS = ("label_flip", "scale", "sign_flip")
"""`fedcats.core.attack`."""
