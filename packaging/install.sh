#!/bin/sh
# Install from the unpacked tarball, for systems where the Debian package cannot be used: sudo ./install.sh
# sudo ./install.sh --remove takes it away again, --purge also the models, logs and the user.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || { echo "install.sh: run it as root (sudo)" >&2; exit 1; }
has_systemd() { [ -d /run/systemd/system ]; }

remove() {
  if has_systemd; then systemctl disable --now qwen-chat.service qwen3-4b.service 2>/dev/null || true; fi
  rm -rf /opt/qwen /usr/share/doc/qwen-service
  rm -f /usr/bin/qwen-service /etc/logrotate.d/qwen-service /lib/udev/rules.d/40-qwen-service.rules \
    /lib/systemd/system/qwen-chat.service /lib/systemd/system/qwen3-4b.service
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

[ -x /usr/bin/python3.11 ] || { echo "install.sh: /usr/bin/python3.11 is needed (Debian 12: sudo apt install python3)" >&2; exit 1; }
rm -rf /opt/qwen
cp -a "$here/opt" "$here/usr" /
mkdir -p /etc/qwen /etc/logrotate.d /lib/udev/rules.d
cp -a "$here/etc/logrotate.d/qwen-service" /etc/logrotate.d/
cp -a "$here/lib/udev/rules.d/40-qwen-service.rules" /lib/udev/rules.d/
if [ -e /etc/qwen/config.yaml ]; then
  cp -a "$here/etc/qwen/config.yaml" /etc/qwen/config.yaml.new # yours is kept
else
  cp -a "$here/etc/qwen/config.yaml" /etc/qwen/
fi
. "$here/users.sh"
create_users
if [ -d /lib/systemd/system ]; then cp -a "$here"/lib/systemd/system/qwen*.service /lib/systemd/system/; fi
if has_systemd; then
  systemctl daemon-reload
  systemctl try-restart qwen-chat.service qwen3-4b.service
  echo "Installed. Next: sudo qwen-service pull smollm2-135m && sudo systemctl enable --now qwen-chat"
else
  echo "Installed. Without systemd: sudo -u qwen /opt/qwen/bin/start_service.sh"
fi
