#!/usr/bin/env bash
# Run the apps of a SuperNode or a SuperLink that was started with PFL_APPS=apart, as the account that starts this script:
#   apps.sh PORT [LOOPBACK] [further options of flower-superexec]
# PORT is the SuperNode's PFL_NODE_PORT, or the SuperLink's, whose certificate on loopback is then LOOPBACK. The account
# needs this package, its data and its state folder, and no key.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: apps.sh PORT [LOOPBACK] [OPTION...]" >&2; exit 2; }
port=$1 loopback=${2:-}
shift $(($# > 1 ? 2 : 1))
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
if [ -n "$loopback" ]; then
  exec flower-superexec --runtime-api-address "127.0.0.1:$port" --root-certificates "$loopback" "$@"
fi
exec flower-superexec --runtime-api-address "127.0.0.1:$port" --insecure "$@"
