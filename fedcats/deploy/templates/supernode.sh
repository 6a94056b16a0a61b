{% include "head.sh" %}
export FLWR_HOME="$PWD/flower" FEDCATS_HOME="${FEDCATS_HOME:-$PWD/home}"
# As a TOML string without a quotation mark in it, as Flower wants it.
photos="$(printf '%s\n' "$photos" | sed 's/\\/\\\\/g; s/"/\\u0022/g')"
exec flower-supernode --root-certificates ca.crt --superlink "{{ address }}" \
    --auth-supernode-private-key node.key --host 127.0.0.1 --port "${SUPERNODE_PORT:-9094}" \
    --node-config "partition-id={{ number }} num-partitions={{ nodes }} data-path=\"$photos\""
