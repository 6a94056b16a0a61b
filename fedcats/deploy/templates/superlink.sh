{% include "head.sh" %}
# Behind the gate: its control API asks for no certificate.
export FLWR_HOME="$PWD/flower" FEDCATS_HOME="${FEDCATS_HOME:-$PWD/home}"
exec flower-superlink --host 127.0.0.1 --port {{ inner }} \
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \
    --enable-supernode-auth --superexec-auth-secret-file superexec.secret \
    --isolation process --database superlink.db --disable-runtime-dependency-installation
