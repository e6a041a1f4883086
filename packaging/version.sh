#!/bin/sh
# Prints the version of this tree, in an order that dpkg and rpm agree on: the
# tag's; behind a tag with +git and the number of commits; before the first tag
# the version that CHANGELOG.md is about, with ~git and the commit's time, which
# sorts before the release.
set -eu
cd "$(dirname "$0")/.."

next=$(sed -n 's/^## \([0-9][0-9.]*\).*/\1/p' CHANGELOG.md | head -n 1)
described=$(git describe --tags --long --match 'v[0-9]*' --abbrev=10 2>/dev/null) || described=
if ! hash=$(git rev-parse --short=10 HEAD 2>/dev/null); then
	version=$next~source
elif [ -z "$described" ]; then
	version=$next~git$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d%H%M%S).$hash
else
	tag=${described%-*-g*}
	behind=${described%-g*}
	behind=${behind##*-}
	version=${tag#v}
	[ "$behind" = 0 ] || version=$version+git$behind.$hash
fi
[ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || version=$version.dirty
echo "$version"
