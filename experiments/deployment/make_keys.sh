#!/usr/bin/env bash
# Make keys and certificates, each where it is to stay:
#   make_keys.sh ca DIR                    the certificate authority, on a machine that need not be the server
#   make_keys.sh server DIR HOST           on the server: its private key, and server.csr for the authority to sign
#   make_keys.sh sign CA_DIR CSR > PEM     at the authority: the server's certificate
#   make_keys.sh node DIR NAME...          on each participant's machine: a key pair; NAME.pub goes to the operator
# Private keys are readable by the account that made them and by nobody else. What exists is kept.
set -euo pipefail
usage() { sed -n '3,6s/^#  *//p' "$0" | sed '1s/^/usage: /' >&2; exit 2; }

folder() { mkdir -p "$1"; chmod 700 "$1"; cd "$1"; umask 077; }

ca() {
  folder "$1"
  [ -e ca.crt ] || openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=pfl-flower CA" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout ca.key -out ca.crt 2>/dev/null
  echo "in $(pwd): ca.key stays here; ca.crt goes to the server and to every node" >&2
}

server() {
  folder "$1"
  case $2 in
    *:*) name="IP:$2" ;;
    *[!0-9.]*) name="DNS:$2" ;;
    *) name="IP:$2" ;;
  esac
  [ -e server.key ] || openssl req -newkey rsa:3072 -nodes -subj "/CN=$2" -keyout server.key -out server.csr \
    -addext "subjectAltName=$name,DNS:localhost,IP:127.0.0.1" 2>/dev/null
  echo "in $(pwd): server.key stays here; server.csr goes to the certificate authority, whose answer is server.pem" >&2
}

sign() {
  # What a server may be called is the request's word; what its certificate is good for is the authority's.
  extensions=$(mktemp)
  trap 'rm -f "$extensions"' EXIT
  {
    openssl req -in "$2" -noout -text | sed -n '/Subject Alternative Name/{n;s/^ *//;s/IP Address:/IP:/g;s/^/subjectAltName=/;p}'
    printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature,keyEncipherment" \
      "extendedKeyUsage=serverAuth" "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid"
  } >"$extensions"
  openssl x509 -req -in "$2" -CA "$1/ca.crt" -CAkey "$1/ca.key" -CAcreateserial -CAserial "$1/ca.srl" -days 365 \
    -extfile "$extensions" 2>/dev/null
}

node() {
  folder "$1"
  shift
  for name in "$@"; do
    [ -e "$name" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$name" -f "$name"
  done
  echo "in $(pwd): $* stay here; of each, .pub goes to the operator" >&2
}

case "${1:-} $#" in
  "ca 2" | "server 3" | "sign 3" | "node "[3-9] | "node "[1-9][0-9]*) "$@" ;;
  *) usage ;;
esac
