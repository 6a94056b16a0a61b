"""Names that a configuration chooses from; without torch, so that the command line starts fast."""

FOLDS = ("polyak", "fedavg", "uniform")
"""Rules that are a fold: `fedcats.merging.fold`."""

STARTS = ("first", "global")
"""Where a Polyak average starts: `fedcats.merging.rules.polyak`."""

SERVER_OPTIMIZERS = ("fedavgm", "fedadam")
"""`fedcats.merging.server_optimizer`."""

ROBUST = ("median", "trimmed_mean", "krum")
"""`fedcats.merging.robust`."""

ATTACKS = ("label_flip", "scale", "sign_flip")
"""`fedcats.training.attack`."""
