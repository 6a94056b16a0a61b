#!/bin/sh
# {{ what }}
set -eu
unset CDPATH
{% if photos %}
photos="${1:?give the folder with the photos of this site: $0 /photos}"
case $PWD/$photos in *'
'*) echo "$0: a line break in the path of the photos is not possible" >&2; exit 2;; esac
photos="$(cd -- "$photos" && pwd)"
{% endif %}
cd -- "$(dirname -- "$0")"
umask 077
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
{% if ends %}
read -r end day < ends
[ "$((end - $(date +%s)))" -ge {{ 30 * 86400 }} ] || echo "warning: the certificates that" \
    "fedcats.deploy made for this folder end on $day; where ca/ is kept:" \
    "python -m fedcats.deploy renew" >&2
{% endif %}
