#!/bin/sh
# The service's user, the card's group, and the folder for models. Sourced by install.sh and by the package's postinst.
create_users() {
  getent group axcl >/dev/null || groupadd --system axcl
  getent group qwen >/dev/null || groupadd --system qwen
  getent passwd qwen >/dev/null || useradd --system --gid qwen --home-dir /var/lib/qwen --no-create-home \
    --shell /usr/sbin/nologin --comment "qwen-service" qwen
  usermod --append --groups axcl qwen
  # A driver that gave its device to another group.
  if [ -e /dev/axcl_host ]; then
    group=$(stat -c %G /dev/axcl_host)
    case $group in root | axcl | UNKNOWN) ;; *) usermod --append --groups "$group" qwen ;; esac
  fi
  install -d -m 0755 -o qwen -g qwen /var/lib/qwen /var/lib/qwen/models
  install -d -m 0750 -o qwen -g qwen /var/log/qwen
}
