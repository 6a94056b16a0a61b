"""torchvision's classifiers and their initial weights."""
