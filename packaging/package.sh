#!/bin/sh
# Builds the packages: deb and rpm, amd64 and arm64, from one static binary each,
# into the folder that is named, or dist. Nothing of this machine goes into them
# but the sources: two builds of one commit are the same, byte for byte.
set -eu
cd "$(dirname "$0")/.."
umask 022

nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0
out=${1:-dist}
version=${VERSION:-$(packaging/version.sh)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
date=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

rm -rf "$out"
mkdir -p "$out/stage/man" "$out/stage/completions"
stage=$(cd "$out/stage" && pwd)
echo "$epoch" >"$stage/epoch"

# filled prints a file with what this build knows in place of @WORD@.
filled() {
	sed "s|@STAGE@|$stage|g; s|@VERSION@|$version|g; s|@DATE@|$date|g; s|@ARCH@|${arch:-}|g
		s|@DOC@|${doc:-}|g; s|@LICENCE@|${licence:-}|g" "$1"
}

# A user's GOFLAGS would build another binary. The commit is in the version.
export GOFLAGS=
GOBIN=$stage go install "$nfpm"
for arch in amd64 arm64; do
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$stage/sisod.$arch" ./cmd/sisod
done

# Compressed without the name and the time of the file.
for page in packaging/man/*; do
	gzip -9nc "$page" >"$stage/man/$(basename "$page").gz"
done
gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
# Its links lead to files that the packages have beside it.
sed 's#\([[(]\)profiles/#\1#g; s#(internal/lab/bench/results/#(#g' README.md >"$stage/README.md"
filled packaging/changelog.yaml >"$stage/changelog.yaml"

# The binary has the Go runtime and modules in it; their licences ask to be told.
{
	echo "==> Go"
	cat "$(go env GOROOT)/LICENSE"
	go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./cmd/sisod | LC_ALL=C sort -u |
		while read -r module folder; do
			printf '\n==> %s\n' "$module"
			cat "$folder"/LICENSE* "$folder"/COPYING* "$folder"/NOTICE* 2>/dev/null || true
		done
} | gzip -9n >"$stage/modules.gz"

# Completions know the commands: the binary writes them itself.
here=$(go env GOHOSTARCH)
[ -e "$stage/sisod.$here" ] || here=amd64
for shell in bash zsh fish; do
	"$stage/sisod.$here" completion "$shell" >"$stage/completions/$shell"
done

# The static binary is one for all distributions; only the names of its
# architecture differ.
for arch in amd64 arm64; do
	rpmarch=x86_64
	[ "$arch" = amd64 ] || rpmarch=aarch64
	for target in "sisod_$version-1_$arch.deb" "sisod-$version-1.$rpmarch.rpm"; do
		# What is documentation, and the licences, only an rpm tells.
		doc='' licence=''
		if [ "${target##*.}" = rpm ]; then
			doc=doc licence="Apache-2.0 AND BSD-3-Clause AND MIT"
		fi
		{
			filled packaging/nfpm.yaml
			for file in profiles/examples/*.toml; do
				echo "  - {src: $file, dst: /usr/share/doc/sisod/examples/${file##*/}, type: \"$doc\", file_info: *data}"
			done
		} >"$stage/nfpm.yaml"
		"$stage/nfpm" package --config "$stage/nfpm.yaml" --packager "${target##*.}" --target "$out/$target" >"$stage/log" 2>&1 || {
			cat "$stage/log" >&2
			exit 1
		}
	done
done

stat -c '%s %n' "$out"/stage/sisod.a* "$out"/*.deb "$out"/*.rpm | awk '{ printf "%6.2f MB  %s\n", $1 / 1e6, $2 }'
