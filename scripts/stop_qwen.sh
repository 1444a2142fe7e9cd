#!/usr/bin/env bash
# Stop what `start_qwen.sh -d` started, and only that.
set -euo pipefail
state=${QWEN_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/qwen-service}
pid_file="$state/start_qwen.pid"
[ -f "$pid_file" ] || { echo "stop_qwen.sh: nothing to stop (no $pid_file)"; exit 0; }

read -r pid started <"$pid_file"
now=$(cut -d' ' -f22 "/proc/$pid/stat" 2>/dev/null || ps -o lstart= -p "$pid" 2>/dev/null || true)
if [ -z "$now" ] || [ "$now" != "$started" ]; then
  echo "stop_qwen.sh: the service (PID $pid) is not running any more"
  rm -f "$pid_file"
  exit 0
fi
kill -TERM "$pid"
for _ in $(seq 300); do
  kill -0 "$pid" 2>/dev/null || { rm -f "$pid_file"; echo "stop_qwen.sh: stopped PID $pid"; exit 0; }
  sleep 0.1
done
echo "stop_qwen.sh: PID $pid does not stop within 30 s; its log is in $state/service.log" >&2
exit 1
