#!/usr/bin/env bash
# Set up the Python environment of this checkout: setup.sh [--dev]
# Makes .venv (or $QWEN_VENV) from the pinned requirements, once for each change of them, and in it bin/qwen-service.
# $PYTHON names the interpreter, if not the distribution's or else `python3` is to be taken.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${QWEN_VENV:-.venv}
requirements=requirements.txt
[ "${1:-}" = --dev ] && requirements="requirements-dev.txt"

own_python() { # The distribution's Python is compiled with optimization, and stays when a version manager's is removed.
  /usr/bin/python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || ! own_python || python=/usr/bin/python3
command -v "$python" >/dev/null || { echo "setup.sh: no $python found. Install Python 3.11 or newer: sudo apt install python3 python3-venv" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup.sh: $("$python" --version) is too old, 3.11 or newer is needed (set PYTHON=/path/to/python3.11)" >&2; exit 1; }

make_command() { # as pip would, had the checkout been installed; a link to it, from anywhere, works too
  cat > "$venv/bin/qwen-service" <<'SH'
#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/python" -P -m qwen_service "$@"
SH
  chmod +x "$venv/bin/qwen-service"
}

stamp=$(cat requirements.txt requirements-ray.txt requirements-dev.txt | sha256sum | cut -c1-16)
marker="$venv/.installed-$requirements"
if [ -f "$marker" ] && [ "$(cat "$marker")" = "$stamp" ]; then
  [ -x "$venv/bin/qwen-service" ] || make_command
  exit 0
fi

echo "Setting up $venv from $requirements (once; a few minutes on a Raspberry Pi) ..." >&2
# A set-up that was interrupted can have left a Python without pip.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv" || { echo "setup.sh: could not make $venv. On Debian: sudo apt install python3-venv" >&2; exit 1; }
quiet=--quiet
[ -t 2 ] && quiet= # on a terminal, show what takes so long
"$venv/bin/python" -m pip install $quiet --disable-pip-version-check --only-binary=:all: -r "$requirements" >&2 || {
  echo "setup.sh: pip could not install the packages; its reason is above. It needs the internet, this once, and goes on where it was when started again." >&2
  echo "setup.sh: a machine without internet takes the Debian package or the tarball: docs/install.md" >&2
  exit 1
}
"$venv/bin/python" - "$PWD" <<'PY'
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "qwen_service_checkout.pth").write_text(sys.argv[1] + "\n")
PY
make_command
[ "$requirements" = requirements.txt ] || "$venv/bin/python" scripts/fetch_test_files.py "$venv/share/qwen-test"
echo "$stamp" > "$marker"
