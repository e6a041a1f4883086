//go:build stock

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// answerLate serves on a port of a host: who has asked and ended has an answer
// when it is given, and not before.
func answerLate(t *testing.T, h *lab.Host, port uint16, answer []byte) (give func()) {
	t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	given := make(chan struct{})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.Copy(io.Discard, c); err == nil {
					<-given
					_, _ = c.Write(answer) // the client's to notice
				}
			}()
		}
	}()
	return func() { close(given) }
}

// halfClosed asks, and ends its half of the connection.
func halfClosed(t *testing.T, from *lab.Host, to netip.AddrPort) net.Conn {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), patient)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "what?\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return c
}

// A client that has said all, and waits for the answer, is among the inactive
// connections of the real server, as those that are over are.
func TestStockADrainWaitsForAnswersOfHalfClosedConnections(t *testing.T) {
	t.Parallel()
	const port = 90
	l := newLVS(t, false)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, "[real_server.web]\nmode = \"nat\"\ndirector = \"DIR4\"\nservices = [\"tcp/90\"]\n[real_server.direct]\nmode = \"dr\"\nvip = \"VIP6\"\n"))
		apply(t, h, 0)
	}
	// No limit ends these drains: nat sees both ends end, dr waits until the kernel
	// has forgotten the connection.
	profile := func(server int, remember string) string {
		return spell(l, fmt.Sprintf(`
			[ipvs]
			timeouts = { tcp_fin = %[2]q }
			[director.web]
			mode = "nat"
			vip = "VIP4"
			interface = "eth0"
			services = ["tcp/8000"]
			drain = "10m"
			real_servers = [{ address = "RS%[1]d4", port = 90 }]
			[director.direct]
			mode = "dr"
			vip = "VIP6"
			interface = "eth0"
			services = ["tcp/90"]
			drain = "10m"
			real_servers = [{ address = "RS%[1]d6" }]`, server, remember))
	}
	writeProfile(t, l.Director, "lvs.toml", profile(1, "10m"))
	_, log := started(t, l.Director)
	answer := bytes.Repeat([]byte("answer\n"), 8<<10)
	give := answerLate(t, l.RealServers[0], port, answer)
	clients := []net.Conn{halfClosed(t, l.Client, l.VIP.At(false, 8000)), halfClosed(t, l.Client, l.VIP.At(true, port))}
	patiently(t, func() error {
		list := run(t, l.Director, "ipvsadm", "-Lnc")
		if !strings.Contains(list, " CLOSE_WAIT ") || !strings.Contains(list, " FIN_WAIT ") {
			return errors.New("the director does not know that the clients have ended:\n" + list)
		}
		return nil
	})
	removed := []string{
		fmt.Sprintf("-r %s -m -w 0", l.RealAddresses[0].At(false, port)),
		fmt.Sprintf("-r %s -g -w 0", l.RealAddresses[0].At(true, port)),
	}
	drain := func(i int, want bool) error {
		if list := run(t, l.Director, "ipvsadm", "-Sn"); strings.Contains(list, removed[i]) != want {
			return fmt.Errorf("%s is there: want %v\n%s%s", removed[i], want, list, run(t, l.Director, "ipvsadm", "-Lnc"))
		}
		return nil
	}
	writeProfile(t, l.Director, "lvs.toml", profile(2, "5s"))
	for _, r := range removed {
		says(t, log, "replace destination", r)
	}
	for range 2 { // passes that find them draining
		last := daemonStatus(t, l.Director).Daemon.LastPass
		patiently(t, func() error {
			if !daemonStatus(t, l.Director).Daemon.LastPass.After(last) {
				return errors.New("the daemon does not look again")
			}
			return nil
		})
	}
	for i := range removed {
		if err := drain(i, true); err != nil {
			t.Error(err)
		}
	}
	give()
	for _, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(2 * patient))
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, answer) {
			t.Errorf("%s answered %d bytes of %d: %v", c.RemoteAddr(), len(got), len(answer), err)
		}
	}
	for i := range removed {
		patiently(t, func() error { return drain(i, false) })
	}
}
