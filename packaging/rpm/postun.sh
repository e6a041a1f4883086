#!/bin/sh
# rpm: after the files of sisod, or of its version before, are gone.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
	if [ "$1" -ge 1 ]; then
		# Between the old daemon and the new one everything stands in the kernel.
		systemctl try-restart sisod.service >/dev/null 2>&1 || :
	fi
fi
