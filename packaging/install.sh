#!/bin/sh
# Install from the unpacked tarball, for systems where the Debian package cannot be used: sudo ./install.sh
# sudo ./install.sh --remove takes it away again, --purge also the models, logs and the user.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || { echo "install.sh: run it as root (sudo)" >&2; exit 1; }
has_systemd() { [ -d /run/systemd/system ]; }

remove() {
  if has_systemd; then systemctl disable --now qwen-chat.service qwen3-4b.service qwen-tuning.service 2>/dev/null || true; fi
  rm -rf /opt/qwen /usr/share/doc/qwen-service
  rm -f /usr/bin/qwen-service /etc/logrotate.d/qwen-service /usr/lib/udev/rules.d/40-qwen-service.rules \
    /usr/share/man/man1/qwen-service.1.gz /usr/lib/systemd/system/qwen-chat.service \
    /usr/lib/systemd/system/qwen3-4b.service /usr/lib/systemd/system/qwen-tuning.service
  if has_systemd; then systemctl daemon-reload; fi
}

case "${1:-}" in
  --remove) remove; exit 0 ;;
  --purge)
    remove
    rm -rf /etc/qwen /var/lib/qwen /var/log/qwen
    userdel qwen 2>/dev/null || true
    exit 0 ;;
  "") ;;
  *) sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac

venv=
for candidate in "$here"/opt/qwen/venv-python3.*; do
  if [ -x "/usr/bin/${candidate##*/venv-}" ]; then venv=$candidate; fi
done
if [ -z "$venv" ]; then
  echo "install.sh: needs Debian's $(cd "$here/opt/qwen" && echo venv-* | sed 's/venv-//g; s/ / or /g') in /usr/bin (sudo apt install python3);" \
    "this system has $(python3 --version 2>/dev/null || echo "no Python"). Other Pythons from 3.11 on: a checkout, or pipx (docs/install.md)" >&2
  exit 1
fi
rm -rf /opt/qwen
mkdir -p /opt/qwen /etc/qwen /etc/logrotate.d
cp -a "$here/opt/qwen/bin" /opt/qwen/
cp -a "$venv" /opt/qwen/venv
cp -a "$here/usr" /
cp -a "$here/etc/logrotate.d/qwen-service" /etc/logrotate.d/
if [ -e /etc/qwen/config.yaml ]; then
  cp -a "$here/etc/qwen/config.yaml" /etc/qwen/config.yaml.new # yours is kept
else
  cp -a "$here/etc/qwen/config.yaml" /etc/qwen/
fi
. "$here/users.sh"
create_users
if has_systemd; then
  systemctl daemon-reload
  systemctl try-restart qwen-chat.service qwen3-4b.service
  echo "Installed. Next: sudo qwen-service setup"
else
  echo "Installed. Without systemd: sudo -u qwen /opt/qwen/bin/start_service.sh"
fi
