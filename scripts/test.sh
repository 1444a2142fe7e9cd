#!/usr/bin/env bash
# Run the tests: test.sh [pytest arguments]. Sets everything up on first use.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh --dev
# The tests start the service some hundred times, which would compile all of it each time where no bytecode may be written.
export PYTHONDONTWRITEBYTECODE=
# Three workers on two cores: most tests wait for processes. A short folder for their files: the path of a unix socket has at most 107 bytes.
folder=$(mktemp -d /tmp/q.XXXX)
trap 'rm -rf "$folder"' EXIT
"${QWEN_VENV:-.venv}/bin/python" -m pytest -n "${QWEN_TEST_WORKERS:-3}" --dist loadfile --no-loadscope-reorder --basetemp "$folder" "$@"
