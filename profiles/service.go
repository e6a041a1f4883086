package profiles

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// transports are the protocols that IPVS balances.
var transports = []string{"tcp", "udp", "sctp"}

// String is the service as a profile has it.
func (p Port) String() string { return fmt.Sprintf("%s/%d", p.Protocol, p.Number) }

// parseService reads "tcp/80".
func parseService(text string) (Port, *fault) {
	const form = `a protocol and a port: "tcp/80"`
	protocol, number, found := strings.Cut(text, "/")
	lower := strings.ToLower(protocol)
	switch {
	case digits(text):
		return Port{}, faultf(fmt.Sprintf("with its protocol: %q", "tcp/"+text), "%q is not a service", text)
	case digits(protocol) && slices.Contains(transports, strings.ToLower(number)):
		return Port{}, faultf(fmt.Sprintf("did you mean %q?", strings.ToLower(number)+"/"+protocol), "%q is not a service", text)
	case !found:
		return Port{}, faultf(form, "%q is not a service", text)
	case protocol != lower && slices.Contains(transports, lower):
		return Port{}, faultf(fmt.Sprintf("did you mean %q?", lower+"/"+number), "%q is not a service", text)
	case !slices.Contains(transports, protocol):
		return Port{}, faultf("the protocols of services are tcp, udp and sctp", "%q is not a service", text)
	}
	if first, last, isRange := strings.Cut(number, "-"); isRange && digits(first) && digits(last) {
		return Port{}, faultf("one port each; for many ports, mark their packets in the firewall and use fwmark", "%q is not a service", text)
	}
	if !digits(number) {
		return Port{}, faultf("the port is a number: names are not looked up", "%q is not a service", text)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return Port{}, faultf("a port is 1 to 65535, or, with persistence, 0 for every port", "%q is not a service", text)
	}
	return Port{Protocol: protocol, Number: uint16(n)}, nil
}

// placedPort is a service and where it stands.
type placedPort struct {
	Port
	at *node
}

// services reads a list of services. A list without any, and one that stands
// twice, are complained about; empty says what to do about the first. It is
// false when something was bad.
func services(l list[field[string]], empty string) ([]placedPort, bool) {
	if l.at == nil {
		return nil, true
	}
	if l.at.shape == array && len(l.at.elements) == 0 {
		l.at.bad("services is an empty list", empty)
		return nil, false
	}
	good := l.at.shape == array
	var out []placedPort
	for _, f := range l.items {
		if !f.ok {
			good = false
			continue
		}
		p, bad := parseService(f.v)
		if bad != nil {
			f.at.bad(bad.text, bad.hint)
			good = false
			continue
		}
		p.Pos = f.at.pos()
		if i := slices.IndexFunc(out, func(o placedPort) bool { return o.Protocol == p.Protocol && o.Number == p.Number }); i >= 0 {
			f.at.bad(fmt.Sprintf("service %s stands twice, first at %s", p, out[i].Pos), "remove one of the two")
			good = false
			continue
		}
		out = append(out, placedPort{p, f.at})
	}
	return out, good
}

func ports(placed []placedPort) []Port {
	var out []Port
	for _, p := range placed {
		out = append(out, p.Port)
	}
	return out
}
