#!/usr/bin/env bash
# Start a run on the nodes of a site, which belong to others:
#   run.sh SITE KEYS [further options of flwr run]
# SITE is the connection's name in ~/.flwr/config.toml; KEYS are keys of the run configuration, such as
#   'users=3 strategic-users="2" min-nodes=3'
# With site=true what nodes say of themselves is shown as their word, and decides no check.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: run.sh SITE KEYS [OPTION...]" >&2; exit 2; }
site=$1 keys=$2
shift 2
exec flwr run "$(dirname "$0")/../.." "$site" --stream --run-config "site=true $keys" "$@"
