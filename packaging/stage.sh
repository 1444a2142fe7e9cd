#!/usr/bin/env bash
# Put the files of an installation under a folder: stage.sh ARCH FOLDER    (ARCH: amd64 or arm64, as Debian says)
# /opt/qwen/venv is a virtual environment for Debian's own Python of the version of $PYTHON (python3.11 for Debian 12,
# python3.13 for Debian 13), filled from wheels; nothing is compiled or executed for the other processor, so that
# either package can be built on either machine.
set -euo pipefail
arch=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."

case $arch in
  amd64) machine=x86_64 ;;
  arm64) machine=aarch64 ;;
  *) echo "stage.sh: no engines are built for $arch; amd64 and arm64 are known" >&2; exit 1 ;;
esac
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
  3.11 | 3.13) ;;
  *) echo "stage.sh: $python is Python $version; 3.11 (Debian 12) and 3.13 (Debian 13) are packaged; set PYTHON" >&2; exit 1 ;;
esac

venv="$folder/opt/qwen/venv"
packages="$venv/lib/python$version/site-packages"
wheels="${QWEN_WHEELS:-build/wheels}/$arch-python$version"
mkdir -p "$wheels" "$packages" "$venv/bin"

platforms=()
for glibc in 36 35 34 31 28 27 17; do platforms+=(--platform "manylinux_2_${glibc}_$machine"); done
platforms+=(--platform "manylinux2014_$machine")
target=(--python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none "${platforms[@]}" --only-binary=:all:)
pip=("$python" -m pip --disable-pip-version-check)
rm -f "$wheels"/qwen_service-*.whl
wanted=$(cat requirements.txt packaging/requirements-venv.txt | sha256sum)
if [ "$(cat "$wheels/.complete" 2>/dev/null)" != "$wanted" ]; then # the only step that needs a network
  "${pip[@]}" download -q "${target[@]}" -d "$wheels" -r requirements.txt -r packaging/requirements-venv.txt
  echo "$wanted" > "$wheels/.complete"
fi
rm -rf build/lib
"${pip[@]}" wheel -q --no-deps -w "$wheels" .
"${pip[@]}" install -q "${target[@]}" --no-index --find-links "$wheels" --no-compile --no-warn-script-location --upgrade \
  --target "$packages" -r requirements.txt -r packaging/requirements-venv.txt qwen-service
rm -rf "${packages:?}/bin" "$packages"/*/direct_url.json "$packages"/*.dist-info/direct_url.json

printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$version" > "$venv/pyvenv.cfg"
ln -sf "/usr/bin/python$version" "$venv/bin/python"
ln -sf python "$venv/bin/python3"
# Byte code that is never checked against its source: the folder is read-only for the service, and packages do not change.
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$folder" "$packages"

install -D -m 755 -t "$folder/opt/qwen/bin" scripts/start_service.sh scripts/tune_host.sh
install -D -m 755 packaging/qwen-service "$folder/usr/bin/qwen-service"
install -D -m 644 packaging/qwen-service.1 "$folder/usr/share/man/man1/qwen-service.1"
install -D -m 644 packaging/config.yaml "$folder/etc/qwen/config.yaml"
install -D -m 644 packaging/logrotate "$folder/etc/logrotate.d/qwen-service"
install -D -m 644 packaging/udev.rules "$folder/usr/lib/udev/rules.d/40-qwen-service.rules"
install -D -m 644 -t "$folder/usr/lib/systemd/system" systemd/*.service
docs=$folder/usr/share/doc/qwen-service
install -D -m 644 -t "$docs" README.md LICENSE SECURITY.md docs/*.md
install -D -m 644 -t "$docs/performance" docs/performance/*.md
sed -i 's#](docs/#](#g' "$docs/README.md" # its links, beside the pages
install -D -m 644 -t "$folder/usr/share/doc/qwen-service/proxy" packaging/proxy/*
