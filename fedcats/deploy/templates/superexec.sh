{% include "head.sh" %}
export FLWR_HOME="$PWD/flower" FEDCATS_HOME="${FEDCATS_HOME:-$PWD/home}"
exec flower-superexec --root-certificates ca.crt --runtime-api-address 127.0.0.1:{{ inner }} \
    --superexec-auth-secret-file superexec.secret
