#!/bin/sh
# What tests expect of the stock kernel. Prints a line for each; the first
# that fails ends it. Usage: stock.sh FIRST SECOND
set -eu

ok() { echo "ok: $*"; }

[ "$#" = 2 ] && [ "$1" = "two words" ] && [ "$2" = 'a "quoted" *' ]
ok arguments
[ -f testdata/stock.sh ] && [ "$LAB_TEST" = "as is" ]
ok working folder and environment
[ "$(id -u)" = 0 ] && [ "$(hostname)" = stockvm ] && [ "$(awk '/^Max open files/ { print $4 }' /proc/self/limits)" -ge 100000 ] && [ "$STOCKVM" = "$(uname -r)" ]
uname -v | grep -q Debian
ok root on Debian\'s kernel
ip link show lo | grep -q LOWER_UP && ping -q -c 1 127.0.0.1 >/dev/null && ping -q -c 1 ::1 >/dev/null
[ "$(ip -o link | wc -l)" = 1 ]
ok only lo, and it is up
[ "$(cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/rp_filter | tr -d '\n')" = 00 ]
ok sysctls of the kernel
grep -q '^cgroup2 /sys/fs/cgroup ' /proc/mounts && mkdir /sys/fs/cgroup/one && rmdir /sys/fs/cgroup/one
[ -c /dev/pts/ptmx ] && [ -c /dev/tty ] && echo x >/dev/shm/x && [ "$(ls /run)" = lock ]
ok mounts

loaded() { grep -q "^$1 " /proc/modules; }
gone() { if loaded "$1"; then echo "$1 is loaded already"; exit 1; fi; }

gone ip_vs
modprobe ip_vs
ipvsadm -Ln | grep -q 'IP Virtual Server'
[ -d /proc/sys/net/ipv4/vs ]
ok ip_vs
gone ip_vs_sh
ipvsadm -A -t 192.0.2.1:80 -s sh
loaded ip_vs_sh
ipvsadm -a -t 192.0.2.1:80 -r 192.0.2.9 -i
ipvsadm -a -t 192.0.2.1:80 -r 192.0.2.8 -i --tun-type gue --tun-port 5555
[ "$(ipvsadm -Sn | wc -l)" = 3 ]
ok ip_vs_sh by itself

gone ipip
ip tunnel add ipip1 mode ipip remote 192.0.2.9
ip link show tunl0 >/dev/null
ok ipip by itself, and tunl0
# Nothing asks for fou by itself.
modprobe -a fou fou6
ip fou add port 5555 gue
ip fou add port 5556 ipproto 4
ip link add gue1 type ipip remote 192.0.2.8 encap gue encap-sport auto encap-dport 5555
ok fou and gue
ip link add dummy-1 type dummy
ip link add bridge-1 type bridge
ip link add ifb-1 type ifb
ok dummy, bridge, ifb by themselves
ip link add ip6tnl1 type ip6tnl mode any remote 2001:db8::9
ip link add sit1 type sit remote 192.0.2.9
ok ip6tnl, sit by themselves
ip link add vrf1 type vrf table 10
ip link add gre1 type gre remote 192.0.2.9
ip link add vlan1 link dummy-1 type vlan id 7
ip link add macvlan1 link dummy-1 type macvlan
ip tuntap add mode tun name tun1
ok vrf, gre, vlan, macvlan, tun by themselves

nft 'table inet t {
	chain in { type nat hook prerouting priority dstnat; tcp dport 81 dnat ip to 192.0.2.9:80; }
	chain out { type nat hook postrouting priority srcnat; masquerade; }
	chain follow { type filter hook prerouting priority mangle; ct state new ct mark set 1; tcp dport 82 tproxy ip to :83 meta mark set 1; }
}'
ok nft inet nat

ip netns add one
ip link add v0 type veth peer name v1 netns one
ip address add 198.51.100.1/24 dev v0
ip -n one address add 198.51.100.2/24 dev v1
ip link set v0 up
ip -n one link set v1 up
ip netns exec one ping -q -c 1 -w 5 198.51.100.1 >/dev/null
ok network namespaces
curl --version >/dev/null
tcpdump --version >/dev/null 2>&1
keepalived --version >/dev/null 2>&1
ok programs of the machine

mkdir written
echo one >written/one
echo two >written/two
echo machine >"$LAB_FILE"
[ "$(cat "$LAB_FILE")" = machine ]
ok files are written
(sleep 1000 &)
echo wrong >&2
exit 7
