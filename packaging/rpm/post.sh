#!/bin/sh
# rpm: after the files of sisod are in place. $1 is 1 for the first installation.
# Whether it is enabled is the distribution's to say, by its presets.
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers sisod.conf || :
fi
if command -v systemd-tmpfiles >/dev/null; then
	systemd-tmpfiles --create sisod.conf || :
fi
if command -v systemctl >/dev/null; then
	if [ "$1" -eq 1 ]; then
		systemctl --no-reload preset sisod.service >/dev/null 2>&1 || :
	fi
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload >/dev/null 2>&1 || :
	fi
fi
