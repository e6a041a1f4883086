#!/bin/sh
# rpm: before the files of sisod go. $1 is 0 for a removal; an upgrade leaves the
# daemon and all its routing where they are.
if [ "$1" -eq 0 ]; then
	if command -v systemctl >/dev/null; then
		systemctl --no-reload disable sisod.service >/dev/null 2>&1 || :
	fi
	if [ -d /run/systemd/system ]; then
		systemctl stop sisod.service >/dev/null 2>&1 || :
	fi
	# Never from a root folder in whose kernel sisod was not at work.
	if [ -d /run/systemd/system ] || [ -n "$(ls -A /run/sisod 2>/dev/null)" ]; then
		sisod flush >/dev/null || echo "sisod: not all was given back; a reboot does that" >&2
	fi
fi
