#!/bin/sh
# Prints a systemd unit for {{ programs }}; as root:
#   ./unit.sh {{ example }} > /etc/systemd/system/fedcats-{{ example.split()[0] }}.service
# It runs as FEDCATS_USER (fedcats), to whom this folder must belong.
set -eu
unset CDPATH
name="${1:?give one of: {{ programs }}}"
folder="$(cd -- "$(dirname -- "$0")" && pwd)"
program="$(command -v flower-supernode)" || { echo "flower-supernode is not on PATH" >&2; exit 2; }
programs="$(dirname -- "$program")"
environment="$(dirname -- "$programs") $("$programs/python3" -c 'import sys; print(sys.base_prefix)')"
{% if photos %}
photos="${2:?give the folder with the photos of this site}"
photos="$(cd -- "$photos" && pwd)"
{% else %}
photos=
{% endif %}
capability=
{% if port < 1024 and not photos %}
[ "$name" != gate ] || capability=CAP_NET_BIND_SERVICE
{% endif %}
[ -x "$folder/$name.sh" ] || { echo "$folder/$name.sh: is not there" >&2; exit 2; }
case $folder$programs${photos}${FEDCATS_USER:-fedcats} in *[!A-Za-z0-9/._+@-]*)
    echo "a path has a character that may mean something to systemd: $folder $programs $photos" >&2
    exit 2 ;;
esac
cat << UNIT
[Unit]
Description=fedcats $name
Wants=network-online.target
After=network-online.target

[Service]
User=${FEDCATS_USER:-fedcats}
ExecStart=$folder/$name.sh $photos
Environment=PATH=$programs:/usr/bin:/bin:/usr/sbin
Restart=on-failure
RestartSec=10
UMask=0077

# Of the places where people keep files it sees these, and writes into its own folder only.
ProtectSystem=strict
ProtectHome=tmpfs
TemporaryFileSystem=/mnt:ro /media:ro /opt:ro /srv:ro
PrivateTmp=yes
BindReadOnlyPaths=$environment $photos
BindPaths=$folder

NoNewPrivileges=yes
AmbientCapabilities=$capability
CapabilityBoundingSet=$capability
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
LockPersonality=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
UNIT
