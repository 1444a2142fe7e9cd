#!/usr/bin/env bash
# Installs the coding agents that `pytest -m agents` drives, into a cache folder outside of the repository.
# Their versions are those that the tests were written with: a later one may send other things.
set -euo pipefail
agents=(@openai/codex@0.171.0 @anthropic-ai/claude-code@2.1.197 opencode-ai@1.18.33)
folder=${QWEN_SERVICE_AGENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/qwen-service-agents}
marker="$folder/installed"
[ "$(cat "$marker" 2>/dev/null)" = "${agents[*]}" ] && exit 0
command -v npm >/dev/null || { echo "npm is missing: install Node.js first (apt install npm)" >&2; exit 1; }
npm install --silent --no-audit --no-fund --prefix "$folder" "${agents[@]}"
echo "${agents[*]}" >"$marker"
echo "The agents are in $folder/node_modules/.bin"
