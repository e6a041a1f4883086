#!/bin/sh
# Checks the packages in the folder that is named, or dist, as package.sh left
# them: that another build, elsewhere and by somebody with other habits, gives the
# same bytes; that the README's links lead somewhere; that lintian, rpmlint and
# mandoc have nothing to say; and the size.
set -eu
cd "$(dirname "$0")/.."
dist=$(cd "${1:-dist}" && pwd)
fail() {
	echo "$*" >&2
	exit 1
}

[ "$(find "$dist" -maxdepth 1 -name '*.deb' | wc -l) $(find "$dist" -maxdepth 1 -name '*.rpm' | wc -l)" = "2 2" ] ||
	fail "$dist has not two debs and two rpms"

other=$(mktemp -d)
trap 'rm -rf "$other"' EXIT
(
	umask 077
	mkdir "$other/src"
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$other/src"
	find "$other/src" -exec touch -d 2001-02-03 {} +
	version=$(dpkg-deb -f "$dist"/*_amd64.deb Version)
	export VERSION="${version%-1}" TZ=Asia/Shanghai LC_ALL=C.UTF-8 HOSTNAME=other
	SOURCE_DATE_EPOCH=$(cat "$dist/stage/epoch") "$other/src/packaging/package.sh" "$other/dist" >/dev/null
)
for package in "$dist"/*.deb "$dist"/*.rpm; do
	cmp "$package" "$other/dist/${package##*/}" || fail "a second build differs; diffoscope tells where"
done

dpkg-deb -x "$dist"/*_amd64.deb "$other/root"
doc=$other/root/usr/share/doc/sisod
grep -o '\](\([^):]*\))' "$doc/README.md" | tr -d ']()' | while read -r link; do
	[ -e "$doc/$link" ] || fail "README.md has a link to $link, which the packages have not beside it"
done

for package in "$dist"/*.rpm; do
	host=$(rpm -qp --queryformat '%{BUILDHOST}' "$package")
	[ "$host" = localhost ] || fail "$package tells the name of the machine that built it, $host"
done

for binary in "$dist"/stage/sisod.a*; do
	[ "$(stat -c %s "$binary")" -le 10000000 ] || fail "$binary is larger than 10 MB"
done

lintian --allow-root --fail-on error,warning "$dist"/*.deb
# nfpm names files from / on, and rpmlint has cpio unpack them without a guard:
# this machine's files would be written over.
mkdir "$other/bin"
cat >"$other/bin/cpio" <<END
#!/bin/sh
exec $(command -v cpio) --no-absolute-filenames "\$@"
END
chmod +x "$other/bin/cpio"
PATH=$other/bin:$PATH rpmlint -c packaging/rpmlint.toml "$dist"/*.rpm >"$other/rpmlint" 2>&1 || true
grep -q ' 0 errors, 0 warnings' "$other/rpmlint" || {
	cat "$other/rpmlint" >&2
	fail "rpmlint complains"
}
for page in packaging/man/*; do
	# Whether other programs' pages are installed here says nothing about ours.
	mandoc -Tlint -W style "$page" 2>/dev/null | grep -v 'referenced manual not found' >"$other/mandoc" || true
	[ ! -s "$other/mandoc" ] || {
		cat "$other/mandoc" >&2
		fail "mandoc complains"
	}
done
echo "built twice: the same; lintian, rpmlint, mandoc: nothing to say"
