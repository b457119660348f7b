#!/usr/bin/env bash
# Start nginx, the only thing that nodes reach; it passes /v1/fleet/ on to the SuperLink of this machine and nothing else:
#   proxy.sh TLS LOOPBACK [PORT] [LINK_PORT]
# TLS is the folder of ca.crt, server.pem and server.key; LOOPBACK is the SuperLink's STATE/loopback.crt. Nodes are told
# HOST:PORT (8443); LINK_PORT (8000) is the SuperLink's. An ordinary account is enough, and best one that runs nothing
# else: server.key need not be readable by any other. Logs are in TLS/proxy/.
#   PFL_BIND   the address to listen on: all of them
#   PFL_RATE   requests a second of one address (50); what exceeds it, and a burst of ten times as many, is asked to wait
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: proxy.sh TLS LOOPBACK [PORT] [LINK_PORT]" >&2; exit 2; }
PATH=$PATH:/usr/sbin:/sbin
command -v nginx >/dev/null || {
  echo "proxy.sh: nginx is not installed: apt-get install nginx-light" >&2
  exit 2
}
fail() { echo "proxy.sh: $1" >&2; exit 2; }
[ "$(id -u)" -ne 0 ] || [ "${PFL_AS_ROOT:-}" = 1 ] ||
  fail "expected an account that is not root; PFL_AS_ROOT=1 is for a laboratory"
for file in "$1/server.pem" "$1/server.key" "$2"; do
  [ -r "$file" ] || fail "$file: expected a file that this account can read"
done
tls=$(cd "$1" && pwd) loopback=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
case $(stat -c %a "$tls/server.key") in
  *00) ;;
  *) fail "$tls/server.key: expected a key that its owner alone can read (chmod 600)" ;;
esac
port=${3:-8443} link=${4:-8000} rate=${PFL_RATE:-50}
for number in "$port" "$link" "$rate"; do
  case $number in "" | *[!0-9]*) fail "$number: expected a whole number" ;; esac
done
run=$tls/proxy
umask 077
mkdir -p "$run"
sed -e "s|@TLS@|$tls|g; s|@RUN@|$run|g; s|@LOOPBACK@|$loopback|g; s|@LISTEN@|${PFL_BIND:+$PFL_BIND:}$port|g" \
  -e "s|@LINK@|$link|g; s|@RATE@|$rate|g; s|@BURST@|$((10 * rate))|g" \
  "$(dirname "$0")/nginx.conf.template" >"$run/nginx.conf"
exec nginx -e "$run/error.log" -p "$run" -c "$run/nginx.conf"
