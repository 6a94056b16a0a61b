"""The commands ``fedcats``, ``fedcats-data`` and ``fedcats-store``."""
