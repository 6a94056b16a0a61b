"""Names that a configuration chooses from; without torch, so that the command line starts fast."""

WEIGHTS = ("auto", "imagenet", "imagenet_features", "none")
"""Initial weights by name; everything else is a file's path."""

FEATURES = ("pooled", "flat", "linear")
"""Of the start model: what heads of statistics stand on, see `fedcats.models.features`."""
