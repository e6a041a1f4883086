package kernel

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// readDhclientLeases reads a dhclient.leases(5): the last block of the
// interface is the one in use.
func readDhclientLeases(content []byte, link string, _, now time.Time) (lease, bool) {
	var last lease
	found := false
	var block []string
	inside := false
	for token := range dhclientTokens(string(content)) {
		switch token.kind {
		case '{':
			// Before the word may be the rest of a statement: only the end of a long
			// file is read.
			inside, block = len(token.words) > 0 && token.words[len(token.words)-1] == "lease", nil
		case '}':
			if inside {
				if l, of, valid := readDhclientBlock(block, now); of == "" || of == link {
					// An expired or declined block still is the last word.
					last, found = l, valid
				}
			}
			inside = false
		default:
			block = append(block, strings.Join(token.words, " "))
		}
	}
	return last, found
}

// dhclientToken is a statement, ended by ; { or }.
type dhclientToken struct {
	kind  byte
	words []string
}

// dhclientTokens cuts a file into statements. Quoted strings keep their
// spaces and ends; a comment runs to the end of its line.
func dhclientTokens(s string) func(yield func(dhclientToken) bool) {
	return func(yield func(dhclientToken) bool) {
		var words []string
		var word strings.Builder
		flush := func() {
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
		}
		quoted := false
		for i := 0; i < len(s); i++ {
			c := s[i]
			switch {
			case quoted && c == '\\' && i+1 < len(s):
				i++
				word.WriteByte(s[i])
			case c == '"':
				quoted = !quoted
			case quoted && c == '\n':
				// A string that never ends must not swallow the rest of the file.
				quoted = false
			case quoted:
				word.WriteByte(c)
			case c == '#':
				for i+1 < len(s) && s[i+1] != '\n' {
					i++
				}
			case c == ';' || c == '{' || c == '}':
				flush()
				if !yield(dhclientToken{c, words}) {
					return
				}
				words = nil
			case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == ',':
				flush()
			default:
				word.WriteByte(c)
			}
		}
	}
}

// readDhclientBlock reads the statements between the braces of a lease.
func readDhclientBlock(block []string, now time.Time) (l lease, link string, valid bool) {
	var routers, byRoutes []netip.Addr
	classless, expired := false, false
	for _, s := range block {
		name, rest, _ := strings.Cut(s, " ")
		if name == "option" {
			name, rest, _ = strings.Cut(rest, " ")
			switch name {
			case "routers":
				routers = addressList(rest)
			case "rfc3442-classless-static-routes", "classless-static-routes":
				classless, byRoutes = true, spelledRoutesDefault(rest)
			}
			continue
		}
		switch name {
		case "interface":
			link = rest
		case "fixed-address":
			l.address, _ = netip.ParseAddr(rest)
		case "expire":
			expired = dhclientExpired(rest, now)
		}
	}
	l.gateways = choose(classless, byRoutes, routers)
	return l, link, l.address.IsValid() && !expired
}

// dhclientExpired reads "never", "epoch SECONDS", or the day of the week, date
// and time in UTC. What is none of them counts as not expired: the address
// must be there anyway.
func dhclientExpired(s string, now time.Time) bool {
	words := strings.Fields(s)
	switch {
	case len(words) >= 2 && words[0] == "epoch":
		seconds, err := strconv.ParseInt(words[1], 10, 64)
		return err == nil && now.After(time.Unix(seconds, 0))
	case len(words) >= 3:
		at, err := time.Parse("2006/1/2 15:04:05", words[1]+" "+words[2])
		return err == nil && now.After(at)
	}
	return false
}
