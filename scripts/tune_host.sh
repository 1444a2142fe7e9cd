#!/bin/sh
# Sets what speeds a card's host up, and undoes it: sudo tune_host.sh start|stop
# start: the CPU's governor becomes "performance", the card's interrupts go to the last core. stop: as it was before.
# qwen-tuning.service runs it. $TUNE_ROOT is another root than / for a trial.
set -eu
root=${TUNE_ROOT:-}
kept=$root/run/qwen-tuning # FILE<tab>VALUE a line: what it was before

card_interrupts() {
  for device in "$root"/sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" 2>/dev/null)" = 0x1f4b ] || continue # Axera Semiconductor
    for number in "$device"/msi_irqs/*; do [ -e "$number" ] && echo "${number##*/}"; done
  done
}

change() { # FILE VALUE
  [ -e "$1" ] || return 0
  before=$(cat "$1")
  [ "$before" != "$2" ] || return 0
  if echo "$2" > "$1"; then
    printf '%s\t%s\n' "$1" "$before" >> "$kept"
    echo "$1: $before -> $2"
  else
    echo "tune_host.sh: $1 stays $before" >&2 # some interrupts cannot be moved
  fi
}

case "${1:-}" in
  start)
    mkdir -p "$root/run"
    for governor in "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do change "$governor" performance; done
    last=0
    for core in "$root"/sys/devices/system/cpu/cpu[0-9]*; do
      if [ "${core##*/cpu}" -gt "$last" ]; then last=${core##*/cpu}; fi
    done
    for number in $(card_interrupts); do change "$root/proc/irq/$number/smp_affinity_list" "$last"; done ;;
  stop)
    [ -f "$kept" ] || exit 0
    while IFS="$(printf '\t')" read -r file before; do
      if [ -e "$file" ]; then echo "$before" > "$file" || echo "tune_host.sh: $file could not be set back to $before" >&2; fi
    done < "$kept"
    rm -f "$kept" ;;
  *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
