#!/usr/bin/env bash
# Start the SuperLink, on this machine's loopback alone; proxy.sh is what the nodes reach:
#   superlink.sh STATE [PORT] [further options of flower-superlink]
# STATE is its folder: the database of registered nodes and runs, so that a restart loses neither, and the certificate
# loopback.crt of PORT (8000), for proxy.sh and for `flwr`. Only nodes whose keys are registered may connect.
# Whoever reaches PORT can run code on the server and on every node: give no account on this machine to a stranger.
# The server app runs as this account, which should be able to read no private key of the site, or with PFL_APPS=apart as
# the one that starts apps.sh, which then cannot reach the database either.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: superlink.sh STATE [PORT] [OPTION...]" >&2; exit 2; }
state=$1 port=${2:-8000}
shift $(($# > 1 ? 2 : 1))
[ "$(id -u)" -ne 0 ] || [ "${PFL_AS_ROOT:-}" = 1 ] || {
  echo "superlink.sh: expected an account that is not root, since apps run as it; PFL_AS_ROOT=1 is for a laboratory" >&2
  exit 2
}
umask 077
mkdir -p "$state"
if [ ! -e "$state/loopback.crt" ]; then
  # Flower admits registered keys over TLS alone. This key is worth nothing beyond loopback, so apps may read it.
  openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=localhost" \
    -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" -addext "basicConstraints=critical,CA:TRUE" \
    -addext "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign" \
    -keyout "$state/loopback.key" -out "$state/loopback.crt" 2>/dev/null
  chmod 644 "$state/loopback.crt"
fi
chmod 711 "$state"
isolation=subprocess
[ "${PFL_APPS:-}" != apart ] || isolation=process
export FLWR_TELEMETRY_ENABLED=${FLWR_TELEMETRY_ENABLED:-0}
exec flower-superlink --host 127.0.0.1 --port "$port" --database "$state/link.db" \
  --ssl-ca-certfile "$state/loopback.crt" --ssl-certfile "$state/loopback.crt" --ssl-keyfile "$state/loopback.key" \
  --isolation "$isolation" --enable-supernode-auth --disable-runtime-dependency-installation "$@"
