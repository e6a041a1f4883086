#!/bin/sh
# rpm: after the files of sisod are in place. $1 is 1 for the first installation.
# Whether it is enabled is the distribution's to say, by its presets.
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers sisod.conf || :
fi
# Root may have applied before there was the daemon's user. Nobody but root could
# put a link into a folder of root's.
for folder in /run/sisod /var/lib/sisod; do
	if [ -d "$folder" ] && [ "$(stat -c %u "$folder")" = 0 ]; then
		chown -hR sisod:sisod "$folder" || :
	fi
done
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
