"""Cats and dogs drawn by the package: the embedded default."""
