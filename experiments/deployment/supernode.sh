#!/usr/bin/env bash
# Start one SuperNode, one user's machine:
#   supernode.sh KEYS NAME SUPERLINK [NODE_CONFIG] [further options of flower-supernode]
# KEYS holds ca.crt and the private key NAME; SUPERLINK is HOST:PORT; NODE_CONFIG says what the node does, such as
#   'role="strategic" data-path="/private/data" state-dir="/private/state"'
# Every message is answered in a process of its own, which ends with it.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: supernode.sh KEYS NAME SUPERLINK [NODE_CONFIG] [OPTION...]" >&2; exit 2; }
keys=$1 name=$2 superlink=$3 config=${4:-}
shift $(($# > 3 ? 4 : 3))
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
trap 'kill "$node" 2>/dev/null; wait "$node"; exit 143' TERM INT
for try in $(seq "${PFL_TRIES:-12}"); do
  began=$SECONDS status=0
  flower-supernode --superlink "$superlink" --root-certificates "$keys/ca.crt" \
    --auth-supernode-private-key "$keys/$name" --isolation subprocess --node-config "$config" \
    --port "${PFL_NODE_PORT:-9094}" "$@" &
  node=$!
  wait "$node" || status=$?
  # A node that died without a word counts as online for a minute, and its key is refused for as long.
  [ "$status" -ne 0 ] && [ $((SECONDS - began)) -lt 60 ] || exit "$status"
  echo "supernode.sh: ended with $status at once, attempt $try; again in 10 s" >&2
  sleep 10 &
  node=$!
  wait "$node"
done
exit "$status"
