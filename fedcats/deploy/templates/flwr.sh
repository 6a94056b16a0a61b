#!/bin/sh
# Flower's command line for this federation: ./flwr.sh run CHECKOUT --stream
set -eu
unset CDPATH
FLWR_HOME="$(cd -- "$(dirname -- "$0")" && pwd)"
export FLWR_HOME FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec python3 -m fedcats.federated.flwr_cli "$@"
