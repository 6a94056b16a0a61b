#!/bin/sh
# {{ what }}
set -eu
unset CDPATH
{% if photos %}
photos="${1:?give the folder with the photos of this site: $0 /photos}"
photos="$(cd -- "$photos" && pwd && echo .)"
photos="${photos%??}" # a line break at its end would have gone
[ "$(printf %s "$photos" | LC_ALL=C tr -d '[:cntrl:]')" = "$photos" ] || {
    echo "$0: a path of photos with a line break or another control character is not possible" >&2
    exit 2
}
{% endif %}
cd -- "$(dirname -- "$0")"
umask 077
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
read -r end day < ends
[ "$((end - $(date +%s)))" -ge {{ 30 * 86400 }} ] || echo "warning: the certificates that" \
    "fedcats.deploy made for this folder end on $day; where ca/ is kept:" \
    "python -m fedcats.deploy renew" >&2
