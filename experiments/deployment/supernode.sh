#!/usr/bin/env bash
# Keep one SuperNode running, one user's machine:
#   supernode.sh KEYS NAME SITE [NODE_CONFIG] [further options of flower-supernode]
# KEYS holds ca.crt and the private key NAME; SITE is HOST:PORT; NODE_CONFIG says what the node does, such as
#   'role="strategic" data-path="/private/data" state-dir="/private/state"'
# Every message is answered in a process of its own, which ends with it. Whatever ends the SuperNode, a lost server and a
# refusal too, it is started again after PFL_PAUSE seconds (10); SIGTERM or SIGINT to this script is what stops it.
#   PFL_APPS=apart    apps do not run as this account, which can read the key, but as the one that starts apps.sh
#   PFL_NODE_PORT     the SuperNode's port on loopback (9094), for apps.sh
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: supernode.sh KEYS NAME SITE [NODE_CONFIG] [OPTION...]" >&2; exit 2; }
keys=$1 name=$2 superlink=$3 config=${4:-}
shift $(($# > 3 ? 4 : 3))
say() { echo "supernode.sh: $1" >&2; }
for file in "$keys/ca.crt" "$keys/$name"; do
  [ -r "$file" ] || { say "$file: expected a file that this account can read"; exit 2; }
done
isolation=subprocess
if [ "${PFL_APPS:-}" = apart ]; then
  isolation=process
else
  say "apps run as $(id -un), who can read $keys/$name; PFL_APPS=apart and apps.sh run them as somebody else"
fi
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
child=
trap 'trap - TERM INT; kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM INT
attend() {
  "$@" &
  child=$!
  wait "$child"
}
python=$(dirname "$(command -v flower-supernode)")/python
while true; do
  status=0
  attend flower-supernode --superlink "$superlink" --root-certificates "$keys/ca.crt" \
    --auth-supernode-private-key "$keys/$name" --isolation "$isolation" --node-config "$config" \
    --port "${PFL_NODE_PORT:-9094}" "$@" || status=$?
  # A SuperNode that is refused for its clock does not say so.
  attend "$python" "$(dirname "$0")/clock.py" "$superlink" "$keys/ca.crt" || true
  say "the SuperNode ended with $status; it is started again in ${PFL_PAUSE:-10} s"
  attend sleep "${PFL_PAUSE:-10}" || true
done
