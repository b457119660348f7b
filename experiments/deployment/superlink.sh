#!/usr/bin/env bash
# Start the SuperLink with TLS; only SuperNodes whose keys are registered may connect:
#   superlink.sh KEYS [PORT] [further options of flower-superlink]
# KEYS is the folder of make_keys.sh. The server app runs on this machine, in processes of its own.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: superlink.sh KEYS [PORT] [OPTION...]" >&2; exit 2; }
keys=$1 port=${2:-8000}
shift $(($# > 1 ? 2 : 1))
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
exec flower-superlink --host "${PFL_BIND:-0.0.0.0}" --port "$port" \
  --ssl-ca-certfile "$keys/ca.crt" --ssl-certfile "$keys/server.pem" --ssl-keyfile "$keys/server.key" \
  --enable-supernode-auth --disable-runtime-dependency-installation "$@"
