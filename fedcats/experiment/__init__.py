"""The experiment: train both ways, merge, test on the same photos, compare."""
