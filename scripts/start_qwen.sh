#!/usr/bin/env bash
# Serve on http://127.0.0.1:8080: start_qwen.sh [-d] [settings as flags, see `qwen-service serve --help`]
# First use sets up .venv and asks which model to install; without a terminal it takes a small one. -d runs in the background with a PID file and a log.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"

background=no
if [ "${1:-}" = -d ]; then
  background=yes
  shift
fi

./scripts/setup.sh
python="${QWEN_VENV:-.venv}/bin/python"
case " $* " in
  *" --model-path"* | *" --models-dir"* | *" --help "*) ;; # served from elsewhere
  *)
    if [ -t 0 ] && [ -t 1 ]; then
      "$python" -m qwen_service setup --offer
    else
      "$python" -m qwen_service pull --if-none smollm2-135m
    fi ;;
esac

[ "$background" = yes ] || exec "$python" -m qwen_service serve "$@"

state=${QWEN_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/qwen-service}
mkdir -p "$state"
pid_file="$state/start_qwen.pid"
log="$state/service.log"
# The start time tells a process from a later one that got the same number.
identity() { echo "$1 $(cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null || ps -o lstart= -p "$1")"; }
if [ -f "$pid_file" ] && read -r pid _ <"$pid_file" && kill -0 "$pid" 2>/dev/null && [ "$(identity "$pid")" = "$(cat "$pid_file")" ]; then
  echo "start_qwen.sh: already running with PID $pid; scripts/stop_qwen.sh stops it" >&2
  exit 1
fi

seen=$(stat -c %s "$log" 2>/dev/null || stat -f %z "$log" 2>/dev/null || echo 0) # bytes: what earlier runs wrote
nohup "$python" -m qwen_service serve "$@" >>"$log" 2>&1 &
pid=$!
identity "$pid" >"$pid_file"
logged() { tail -c "+$((seen + 1))" "$log"; }
trouble="no model can be served| cannot run: "
ready=no
for _ in $(seq 300); do # 30 s: a Raspberry Pi needs 10 s to the first line, a card's model is not waited for
  if grep -qE "is ready after|$trouble" <(logged); then ready=yes && break; fi
  kill -0 "$pid" 2>/dev/null || { echo "start_qwen.sh: the service ended at once; the end of $log:" >&2; tail -n 5 "$log" >&2; rm -f "$pid_file"; exit 1; }
  sleep 0.1
done
echo "qwen-service runs with PID $pid, log in $log"
grep -oE -m1 'listening on http[^ "]*' <(logged) || true
[ "$ready" = yes ] || echo "The model is still loading; until it is ready, requests are answered with 503. The log tells when it is."
grep -E "$trouble" <(logged) >&2 || true # it runs, and says the same to whoever asks
