"""Local training: the loop, its fast step, and the update that comes out."""
