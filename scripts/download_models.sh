#!/usr/bin/env bash
# Download, verify and install models into models/: download_models.sh [NAME...]
# Without a name: the two models of the card. `qwen-service list --all` shows all there are.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh
[ $# -gt 0 ] || set -- qwen2.5-1.5b-instruct qwen3-4b
for name in "$@"; do
  "${QWEN_VENV:-.venv}/bin/python" -m qwen_service pull "$name"
done
