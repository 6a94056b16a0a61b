"""How models are merged."""
