#!/bin/sh
# Installs, upgrades and removes the packages in the folder that is named, or dist,
# on a copy of this Debian machine's root folder, in namespaces of its own and
# without a running systemd: the scripts must work there as well, and must leave a
# kernel alone in which sisod was never at work. Needs root.
set -eu
cd "$(dirname "$0")/.."
arch=$(dpkg --print-architecture)
if [ "${2:-}" != inside ]; then
	exec unshare --mount --net "$0" "$(cd "${1:-dist}" && pwd)" inside
fi

mount -t tmpfs none /mnt
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay none -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root
mount -t proc none /mnt/root/proc
mount -t tmpfs none /mnt/root/run
mount -t tmpfs none /mnt/root/tmp
cp "$1"/*_"$arch".deb /mnt/root/tmp/sisod.deb
cp "$1"/*."$(uname -m)".rpm /mnt/root/tmp/sisod.rpm

exec chroot /mnt/root sh -eu <<'END'
exec 3>&1 >/tmp/log 2>&1
step() { now=$*; echo "$now" >&3; }
trap '[ $? = 0 ] || { cat /tmp/log; echo "failed: $now"; } >&3' EXIT
set -x

standing() { ip rule | grep -qx '11800:.*from 192.0.2.9 lookup 77 proto sisod'; }
flushed() { [ -z "$(ip rule | grep 'proto \(sisod\|115\)')" ]; }
absent() { for path; do [ ! -e "$path" ]; done; }
links() { find /etc/systemd/system -name sisod.service; }

step deb: install, the user is there, the service is enabled, nothing is touched
ip rule add from 192.0.2.9 lookup 77 priority 11800 protocol 115
dpkg -i --force-depends /tmp/sisod.deb
getent passwd sisod
[ -n "$(links)" ]
standing
man -w sisod sisod.toml sisod-profile

step deb: an upgrade leaves the state, and a changed profile
echo '[uplink.a]' >/etc/sisod/profiles/a.toml
dpkg -i --force-depends /tmp/sisod.deb
standing
[ -e /etc/sisod/profiles/a.toml ]

step deb: a removal where sisod was never at work leaves the kernel alone, and profiles
dpkg -r sisod
standing
[ -e /etc/sisod/profiles/a.toml ]
absent /usr/sbin/sisod

step deb: purge takes the configuration
dpkg -P sisod
absent /etc/sisod /var/lib/sisod /run/sisod
[ -z "$(links)" ]

step deb: where sisod was at work, an upgrade leaves the state and a removal flushes
dpkg -i --force-depends /tmp/sisod.deb
printf '[[rule]]\npriority = 11400\nfrom = "192.0.2.9"\nlookup = 77\n' >/etc/sisod/profiles/a.toml
sisod apply
dpkg -i --force-depends /tmp/sisod.deb
ip rule | grep '^11400:'
dpkg -r sisod
flushed
dpkg -P sisod
userdel sisod

step rpm: install, upgrade
rpm --initdb
rpm -i --nodeps /tmp/sisod.rpm
getent passwd sisod
sisod version
mkdir -p /etc/sisod/profiles
printf '[[rule]]\npriority = 11400\nfrom = "192.0.2.9"\nlookup = 77\n' >/etc/sisod/profiles/a.toml
sisod apply
rpm -U --nodeps --replacepkgs /tmp/sisod.rpm
ip rule | grep '^11400:'

step rpm: a removal flushes, and leaves profiles
rpm -e sisod
flushed
[ -e /etc/sisod/profiles/a.toml ]
absent /usr/sbin/sisod
END
