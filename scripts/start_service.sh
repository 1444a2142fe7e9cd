#!/bin/bash
# What the systemd units start: start_service.sh [model] [settings as flags]
# The card's programs need PATH and LD_LIBRARY_PATH as the vendor's package sets them for login shells.
set -eo pipefail
if [ -r /etc/profile ]; then
  . /etc/profile
fi
if [ -d /usr/lib/axcl ]; then
  export LD_LIBRARY_PATH="/usr/lib/axcl${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

root=$(cd "$(dirname "$0")/.." && pwd)
python="$root/venv/bin/python"
if [ ! -x "$python" ]; then # a checkout
  python="${QWEN_VENV:-$root/.venv}/bin/python"
  cd "$root"
fi
case "${1:-}" in
  "" | -*) ;;
  *) set -- --model "$@" ;;
esac
exec "$python" -m qwen_service serve "$@"
