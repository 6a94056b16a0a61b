"""The commands ``fedcats``, ``fedcats-data``, ``fedcats-gaps`` and ``fedcats-store``."""
