package state

// Counts are what a service or a destination has had, of connections, packets and
// bytes. Out is what came back through the balancer: 0 where real servers answer
// themselves.
type Counts struct {
	Connections uint64 `json:"connections"`
	PacketsIn   uint64 `json:"packets_in"`
	PacketsOut  uint64 `json:"packets_out"`
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
}

// Traffic is what the kernel counts of a service or a destination: since it was
// added, and in a second as of late (net/netfilter/ipvs/ip_vs_est.c).
type Traffic struct {
	Total     Counts `json:"total"`
	PerSecond Counts `json:"per_second"`
}
