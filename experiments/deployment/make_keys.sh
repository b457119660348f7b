#!/usr/bin/env bash
# Make what a TLS SuperLink and its authenticated SuperNodes need:
#   make_keys.sh DIR HOST NAME...
# DIR gets ca.crt (give it to every node and to whoever runs `flwr`), server.pem and server.key (the SuperLink's, for
# HOST, a name or an address), and for each NAME a private key NAME (it stays on that node) and NAME.pub (to register).
# What exists is kept: run it again with more names to add nodes.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: make_keys.sh DIR HOST NAME..." >&2; exit 2; }
directory=$1 host=$2
shift 2
mkdir -p "$directory"
chmod 700 "$directory"
cd "$directory"
umask 077

if [ ! -e ca.crt ]; then
  openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=pfl-flower CA" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout ca.key -out ca.crt 2>/dev/null
fi
if [ ! -e server.pem ]; then
  case $host in
    *[!0-9.]*) name="DNS:$host" ;;
    *) name="IP:$host" ;;
  esac
  openssl req -newkey rsa:3072 -nodes -subj "/CN=$host" -keyout server.key -out server.csr 2>/dev/null
  printf 'subjectAltName=%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' "$name" > server.ext
  openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile server.ext \
    -out server.pem 2>/dev/null
  rm -f server.csr server.ext
fi
for node in "$@"; do
  [ -e "$node" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$node" -f "$node"
done
echo "in $(pwd): ca.crt, server.pem, server.key, and a key pair for each of: $*"
