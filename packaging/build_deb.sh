#!/usr/bin/env bash
# Build the Debian packages and the tarball of one or more architectures: build_deb.sh [amd64] [arm64]
# One package for each Python in $PYTHONS (default: those of python3.11 and python3.13 that are here): Debian 12 has
# 3.11, Debian 13 has 3.13. The tarball holds an environment for each of them. Needs dpkg-dev debhelper fakeroot git,
# and pip and venv of each Python. Results in dist/. QWEN_WHEELS names a folder of wheels to use and to keep.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- "$(dpkg --print-architecture)"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
here=$PWD
export QWEN_WHEELS=${QWEN_WHEELS:-$here/build/wheels}
if [ -z "${PYTHONS:-}" ]; then
  for python in python3.11 python3.13; do
    if "$python" -c 'import pip' 2>/dev/null; then PYTHONS="${PYTHONS:-} $python"; fi
  done
fi
[ -n "${PYTHONS:-}" ] || { echo "build_deb.sh: neither python3.11 nor python3.13 with pip is here (PYTHONS=/path/to/python3.13)" >&2; exit 1; }
mkdir -p dist

package() { # ARCH PYTHON: the Debian package, and its files in build/package-ARCH-debianN
  local arch=$1 release codename tree date
  export PYTHON=$2
  case $("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') in
    3.11) release=12 codename=bookworm ;;
    3.13) release=13 codename=trixie ;;
    *) echo "build_deb.sh: $PYTHON is neither Debian 12's 3.11 nor Debian 13's 3.13" >&2; exit 1 ;;
  esac
  tree="$here/build/package-$arch-debian$release/qwen-service-$version"
  rm -rf "$(dirname "$tree")"
  mkdir -p "$tree"
  git ls-files -z | xargs -0 cp --parents -t "$tree"
  cp -r packaging/debian "$tree/debian"
  date=$(date -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")
  printf 'qwen-service (%s) %s; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- qwen-service maintainers <maintainers@qwen-service.invalid>  %s\n' \
    "${DEB_VERSION:-$version}+deb$release" "$codename" "$date" > "$tree/debian/changelog"
  echo "Building ${DEB_VERSION:-$version} for Debian $release, $arch ..." >&2
  (cd "$tree" && dpkg-buildpackage -us -uc -b -d -a"$arch" -Pnocheck) > "build/package-$arch-debian$release.log" 2>&1 ||
    { tail -n 30 "build/package-$arch-debian$release.log" >&2; exit 1; }
  cp "$tree"/../*.deb dist/
}

tarball() { # ARCH: what is common, and one environment for each Python; equal files are stored once
  local arch=$1 folder="$here/build/tarball-$1" name="qwen-service-$version-$1" staged
  rm -rf "$folder"
  mkdir -p "$folder/$name"
  for staged in "$here/build/package-$arch-debian"*/qwen-service-"$version"/debian/qwen-service; do
    cp -al "$staged/." "$folder/$name/"
    rm -rf "$folder/$name/DEBIAN"
    mv "$folder/$name/opt/qwen/venv" "$folder/$name/opt/qwen/venv-$(basename "$(readlink "$staged/opt/qwen/venv/bin/python")")"
  done
  cp packaging/install.sh packaging/users.sh "$folder/$name/"
  hardlink -q -c "$folder/$name/opt"
  tar --owner=root --group=root --sort=name -C "$folder" -czf "dist/$name.tar.gz" "$name"
}

for arch in "$@"; do
  rm -rf "build/package-$arch-"*
  for python in $PYTHONS; do package "$arch" "$python"; done
  tarball "$arch"
done
ls -l dist >&2
