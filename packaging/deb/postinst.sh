#!/bin/sh
# Debian: after the files of sisod are in place.
set -e

case "$1" in
configure | abort-upgrade | abort-deconfigure | abort-remove) ;;
*) exit 0 ;;
esac

if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers sisod.conf
fi
# Root may have applied before there was the daemon's user. Nobody but root could
# put a link into a folder of root's.
for folder in /run/sisod /var/lib/sisod; do
	if [ -d "$folder" ] && [ "$(stat -c %u "$folder")" = 0 ]; then
		chown -hR sisod:sisod "$folder"
	fi
done
if command -v systemd-tmpfiles >/dev/null; then
	systemd-tmpfiles --create sisod.conf || true
fi

# Enabled at the first installation; what the administrator did since then stays.
deb-systemd-helper unmask sisod.service >/dev/null || true
if deb-systemd-helper --quiet was-enabled sisod.service; then
	deb-systemd-helper enable sisod.service >/dev/null || true
else
	deb-systemd-helper update-state sisod.service >/dev/null || true
fi

if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
	# Restart starts what is enabled, also at an installation after a removal.
	# Between an old daemon and the new one everything stands in the kernel.
	deb-systemd-invoke restart sisod.service >/dev/null || true
fi
