#!/usr/bin/env bash
# Writes the repository's address, which only a release's workflow knows, into pyproject.toml and into README.md, whose
# relative links lead nowhere on a package index: public_links.sh URL TAG
set -euo pipefail
url=$1 tag=$2
cd "$(dirname "$0")/.."
cat >> pyproject.toml <<END

[project.urls]
Homepage = "$url"
Documentation = "$url/tree/$tag/docs"
Changelog = "$url/blob/$tag/CHANGELOG.md"
Issues = "$url/issues"
END
sed -Ei "s#\]\(([A-Za-z][^):]*)\)#](${url}/blob/${tag}/\1)#g; s#\"(docs/images/[^\"]*)\"#\"${url}/raw/${tag}/\1\"#g" README.md
