//go:build boot

package boot

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// stream is a client behind the second provider at work: one request after the
// other, each on a connection of its own, and pings. Its replies get lost unless
// they leave by the uplink that they came in by.
type stream struct{ m *machine }

// startStream starts a web server on the host, and the client.
func (m *machine) startStream(t *testing.T) stream {
	t.Helper()
	m.serve(t)
	m.run(t, "rm -f /run/requests /run/pings")
	const in = "systemd-run -q --collect -p NetworkNamespacePath=/run/netns/world "
	// Standard error, unlike standard output, is in the file at once.
	m.run(t, in+"--unit=requests -p StandardError=file:/run/requests curl -s --interface 192.0.2.10 --retry 0 --max-time 10 -H 'Connection: close' -o /dev/null -w '%{stderr}%{http_code}\\n' 'http://198.51.100.2:8080/?[1-1000000]'")
	m.run(t, in+"--unit=pings -p StandardOutput=file:/run/pings ping -n -I 192.0.2.10 -i 0.05 198.51.100.2")
	s := stream{m}
	s.flows(t)
	return s
}

// flows waits until more requests and pings are answered.
func (s stream) flows(t *testing.T) {
	t.Helper()
	s.m.until(t, "n=$(grep -c 200 /run/requests); p=$(grep -c icmp_seq /run/pings); for i in 1 2 3 4 5; do sleep 1; test $(grep -c 200 /run/requests) -gt $((n+5)) -a $(grep -c icmp_seq /run/pings) -gt $((p+5)) && exit; done; exit 1")
}

var pingSequence = regexp.MustCompile(`icmp_seq=(\d+)`)

// end ends the client, and returns how many requests were answered, and how many
// requests and pings were not.
func (s stream) end(t *testing.T) (answered, lost, lostPings int) {
	t.Helper()
	s.m.run(t, "systemctl stop requests; systemctl stop pings web")
	for line := range strings.Lines(s.m.run(t, "cat /run/requests")) {
		if strings.TrimSpace(line) == "200" {
			answered++
		} else {
			t.Logf("request %d ended with %s", answered+lost+1, line)
			lost++
		}
	}
	// The last ones were on their way when it ended; a gap before is a loss.
	last := 0
	for _, m := range pingSequence.FindAllStringSubmatch(s.m.run(t, "cat /run/pings"), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		lostPings += max(0, n-last-1)
		last = n
	}
	if answered == 0 || last == 0 {
		t.Fatalf("%d requests answered, %d pings", answered, last)
	}
	return answered, lost, lostPings
}
