#!/usr/bin/env bash
# Run the tests: test.sh [pytest arguments]. Sets everything up on first use.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh --dev
# Real processes, browsers and clocks: what fails is tried twice more, and the closing line counts those reruns.
exec "${QWEN_VENV:-.venv}/bin/python" -m pytest --reruns 2 "$@"
