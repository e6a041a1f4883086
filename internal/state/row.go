package state

// Rows of the rule layout, counted from the first priority of sisod's window.
// Lower is asked first.
const (
	RowReverse      = 0   // looks at captured packets by the reverse-path filter go on at RowUncaptured
	RowCaptured     = 1   // captured packets, to this host
	RowUncaptured   = 49  // nothing but a place
	RowReturn       = 50  // return path of a nat real server, before main's neighbours
	RowRoom         = 60  // to the director of a fullnat real server, with an MSS that leaves room
	RowNeighbours   = 100 // main, for what it sends by interfaces that are no uplink
	RowBetween      = 150 // marked packets that came in by an uplink: to hosts on another's network
	RowMarked       = 200 // by the uplink of their connection
	RowAddresses    = 300 // from an address of an uplink, or a VIP
	RowSources      = 400 // from a network behind the host, longest prefix first
	RowDevices      = 500 // sockets bound to an uplink's interface
	RowDestinations = 800 // prefixes that prefer an uplink
	RowMain         = 850 // all that main knows more exactly than a default
	RowDefaults     = 900 // the host's own default
	RowSourcesEnd   = RowDevices - 1
)
