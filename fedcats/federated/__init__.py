"""The federation: Flower's apps around the core, in simulation or on many machines."""

import os

# Before Flower and Ray are imported: no usage reports, no hiding of GPUs from CPU actors.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray would run the clients at nice 15, and everything else on the machine goes first.
os.environ.setdefault("RAY_worker_niceness", "0")
