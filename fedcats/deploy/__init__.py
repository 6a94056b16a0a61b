"""A real federation: its keys, certificates and start scripts, and a rehearsal on one machine."""
