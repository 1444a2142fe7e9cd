#!/usr/bin/env bash
# Build the Debian package and the tarball of one or more architectures: build_deb.sh [amd64] [arm64]
# On Debian Bookworm with: apt install dpkg-dev debhelper fakeroot python3 python3-venv python3-pip
# Results in dist/. QWEN_WHEELS names a folder of wheels to use and to keep for the next build.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- "$(dpkg --print-architecture)"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
here=$PWD
export QWEN_WHEELS=${QWEN_WHEELS:-$here/build/wheels}
mkdir -p dist

for arch in "$@"; do
  tree="$here/build/package-$arch/qwen-service-$version"
  rm -rf "$(dirname "$tree")"
  mkdir -p "$tree"
  git ls-files -z | xargs -0 cp --parents -t "$tree"
  cp -r packaging/debian "$tree/debian"
  date=$(date -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")
  printf 'qwen-service (%s) bookworm; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- qwen-service maintainers <maintainers@qwen-service.invalid>  %s\n' \
    "${DEB_VERSION:-$version}" "$date" > "$tree/debian/changelog"
  echo "Building ${DEB_VERSION:-$version} for $arch ..." >&2
  (cd "$tree" && dpkg-buildpackage -us -uc -b -d -a"$arch" -Pnocheck) > "build/package-$arch.log" 2>&1 ||
    { tail -n 30 "build/package-$arch.log" >&2; exit 1; }
  cp "$tree"/../*.deb dist/
  tar --owner=root --group=root --sort=name -C "$tree/debian" --transform "s,^qwen-service,qwen-service-$version-$arch," \
    -czf "dist/qwen-service-$version-$arch.tar.gz" qwen-service/opt qwen-service/usr qwen-service/etc qwen-service/lib \
    -C "$here/packaging" --transform "s,^\(install\|users\).sh,qwen-service-$version-$arch/\1.sh," install.sh users.sh
done
ls -l dist >&2
