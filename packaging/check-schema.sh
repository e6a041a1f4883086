#!/bin/sh
# Checks with taplo, the language server of most editors, that the schemas take
# the examples, the references and every profile of the tests, by the line that
# names the schema, and refuse what is wrong. Needs npx, of Debian's package npm.
set -eu
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export npm_config_loglevel=error

taplo() { npx --yes @taplo/cli@0.7.0 lint --no-auto-config "$@" >"$work/log" 2>&1; }

# The first line names the schema where the package has it; here it is elsewhere.
for file in profiles/examples/*.toml profiles/reference*.toml packaging/sisod.toml; do
	sed "1s|/usr/share/sisod/|$PWD/profiles/|" "$file" >"$work/$(basename "$file")"
	grep -q "^#:schema file://$PWD/profiles/.*json$" "$work/$(basename "$file")"
done
find routing/testdata lvs/testdata -path '*/profiles/*.toml' | while read -r file; do
	{
		echo "#:schema file://$PWD/profiles/schema.json"
		cat "$file"
	} >"$work/$(echo "$file" | tr / _)"
done
taplo "$work"/*.toml || {
	cat "$work/log" >&2
	exit 1
}

while read -r line; do
	printf '#:schema file://%s/profiles/schema.json\n%b\n' "$PWD" "$line" >"$work/bad.toml"
	if taplo "$work/bad.toml"; then
		printf "the schema takes what is wrong: %s\n" "$line" >&2
		exit 1
	elif ! grep -q 'error=schema validation failed' "$work/log"; then
		cat "$work/log" >&2
		exit 1
	fi
done <<'END'
[uplnk.a]\ninterface = "em1"
[uplink.a]\ninterfaces = "em1"
[uplink.a]\ngateway = "auto"
[uplink.a]\ninterface = "em1"\nrp_filter = "stric"
[uplink.a]\ninterface = "em1"\ngateway = "192.168.1"
[uplink.a]\ninterface = "em1"\nmtu = 12
[rule]\npriority = 1
[real_server.a]\nmode = "tunnel"\nvip = "192.0.2.1"
[director.a]\nmode = "dr"\nvip = "192.0.2.1"\nservices = ["80"]\nreal_servers = [{ address = "10.0.0.1" }]
[director.a]\nmode = "dr"\nvip = "192.0.2.1"\nservices = ["tcp/80"]\npersistence = 300\nreal_servers = [{ address = "10.0.0.1" }]
[director.a]\nmode = "fulnat"\nvip = "192.0.2.1"\nservices = ["tcp/80"]\nsnat = "10.0.0.5"\nreal_servers = [{ address = "10.0.0.1" }]
[director.a]\nmode = "fullnat"\nvip = "192.0.2.1"\nservices = ["tcp/80"]\nsnat = "10.0.0.0/24"\nreal_servers = [{ address = "10.0.0.1" }]
[real_server.a]\nmode = "fullnat"\ndirector = "10.0.0.5"\nmss_room = 44
[tproxy.a]\nservices = ["tcp/80"]\ninterfaces = "eth1"\nlisten = ":3129"
[tproxy.a]\nservices = ["tcp/80"]\ninterfaces = ["eth1"]
[tproxy.a]\nservices = ["sctp/80"]\ninterfaces = ["eth1"]\nlisten = ":3129"
[tproxy.a]\nservices = ["tcp/80"]\ninterfaces = ["eth1"]\nlisten = ":3129"\nupstream = 3
END
