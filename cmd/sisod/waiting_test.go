package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// dialogue opens a TCP connection that stays open, and returns a function
// that has the client say a word and hear it back.
func dialogue(t *testing.T, client, server *lab.Host, to netip.AddrPort) func() error {
	t.Helper()
	var listener net.Listener
	var conn net.Conn
	err := server.Do(func() (err error) {
		listener, err = net.Listen("tcp", to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		peer, err := listener.Accept()
		if err != nil {
			return // the client notices
		}
		defer peer.Close()
		lines := bufio.NewReader(peer)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := peer.Write([]byte(line)); err != nil {
				return
			}
		}
	}()
	err = client.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	lines := bufio.NewReader(conn)
	words := 0
	return func() error {
		words++
		word := fmt.Sprintf("word %d\n", words)
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(word)); err != nil {
			return err
		}
		heard, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		if heard != word {
			return errors.New("heard " + heard)
		}
		return nil
	}
}

// acceptAll takes a provider's source filter away: replies that leave by the
// wrong uplink work, as they do with many providers.
func acceptAll(t *testing.T, router *lab.Host) {
	t.Helper()
	for _, f := range []string{"-4", "-6"} {
		ip(t, router, f, "rule", "del", "iif", "host", "blackhole")
	}
}

func TestUplinkWithoutKnownGatewayTakesNothingAway(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	acceptAll(t, two.Uplinks[0].Router)
	second := two.Uplinks[1]
	// before is how it works without sisod: replies of the second uplink leave by the first.
	before := everyWay(two, false, false)
	for i := range before {
		before[i].answered = true
	}
	converse(t, two.Host, "before", before)
	var operators []func() error
	for i, a := range second.Address.All() {
		operators = append(operators, dialogue(t, second.Client, two.Host, netip.AddrPortFrom(a, uint16(2200+i))))
	}
	same := func(what string) {
		t.Helper()
		for _, say := range operators {
			if err := say(); err != nil {
				t.Errorf("%s: connection that was open before: %v", what, err)
			}
		}
		converse(t, two.Host, what, before)
		for _, f := range []string{"-4", "-6"} {
			if rules := ip(t, two.Host, f, "rule"); strings.Contains(rules, "from 198.51.100") || strings.Contains(rules, "from 2001:db8:2:") || strings.Contains(rules, "oif em2") {
				t.Errorf("%s: rules of an uplink that is not usable:\n%s", what, rules)
			}
		}
	}
	says := func(r result, text string) {
		t.Helper()
		if err := errWant(text, r.stderr); err != nil {
			t.Errorf("problems of apply: %v", err)
		}
	}

	writeProfile(t, two.Host, "isp.toml", "[uplink.isp1]\ninterface = \"em1\"\n[uplink.isp2]\ninterface = \"em2\"\n")
	r := apply(t, two.Host, 2)
	says(r, "uplink isp2: no IPv4 gateway of em2 is learned yet")
	says(r, "uplink isp2: no IPv6 gateway of em2 is learned yet")
	same("gateway never learned")

	writeProfile(t, two.Host, "isp.toml", "[uplink.isp1]\ninterface = \"em1\"\n[uplink.isp2]\ninterface = \"em9\"\ngateway = [\"198.51.100.1\", \"2001:db8:2::1\"]\n")
	says(apply(t, two.Host, 2), "uplink isp2: interface em9 is not there")
	same("interface that never appears")

	writeProfile(t, two.Host, "isp.toml", "[uplink.isp1]\ninterface = \"em1\"\n[uplink.isp2]\ninterface = \"em2\"\ngateway = [\"198.51.103.1\", \"2001:db8:3::1\"]\n")
	says(apply(t, two.Host, 2), "gateway 198.51.103.1 is outside every network of em2")
	same("gateway outside every prefix")

	// The operator's connection goes on when its way becomes the right one.
	writeProfile(t, two.Host, "isp.toml", "[uplink.isp1]\ninterface = \"em1\"\n[uplink.isp2]\ninterface = \"em2\"\n")
	ip(t, two.Host, "route", "add", "default", "via", "198.51.100.1", "dev", "em2", "metric", "500")
	ip(t, two.Host, "-6", "route", "add", "default", "via", "2001:db8:2::1", "dev", "em2", "metric", "5000")
	apply(t, two.Host, 0)
	converse(t, two.Host, "learned", everyWay(two, true, false))
	for _, say := range operators {
		if err := say(); err != nil {
			t.Errorf("learned: connection that was open before: %v", err)
		}
	}
}
