#!/usr/bin/env bash
# Installs the coding agents that `pytest -m agents` drives, into a cache folder outside of the repository.
set -euo pipefail
folder=${QWEN_SERVICE_AGENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/qwen-service-agents}
command -v npm >/dev/null || { echo "npm is missing: install Node.js first (apt install npm)"; exit 1; }
npm install --silent --no-audit --no-fund --prefix "$folder" @anthropic-ai/claude-code @openai/codex opencode-ai
echo "The agents are in $folder/node_modules/.bin"
