package profiles

// The raw types of LVS: the keys of [real_server.NAME], [director.NAME] and
// [ipvs] as written.

type rawRealServer struct {
	at                *node
	Mode              field[string]       `toml:"mode"`
	VIP               field[any]          `toml:"vip"`
	Services          list[field[string]] `toml:"services"`
	Uplink            field[string]       `toml:"uplink"`
	Director          field[any]          `toml:"director"`
	Interface         field[string]       `toml:"interface"`
	Encapsulation     field[string]       `toml:"encapsulation"`
	EncapsulationPort field[int64]        `toml:"encapsulation_port"`
	MSSRoom           field[int64]        `toml:"mss_room"`
}

type rawDirector struct {
	at                 *node
	VIP                field[any]          `toml:"vip"`
	Mode               field[string]       `toml:"mode"`
	Scheduler          field[string]       `toml:"scheduler"`
	SchedulerFlags     list[field[string]] `toml:"scheduler_flags"`
	Services           list[field[string]] `toml:"services"`
	FWMark             field[int64]        `toml:"fwmark"`
	Interface          field[string]       `toml:"interface"`
	Uplink             field[string]       `toml:"uplink"`
	Persistence        field[any]          `toml:"persistence"`
	PersistenceNetmask field[any]          `toml:"persistence_netmask"`
	OnePacket          field[bool]         `toml:"one_packet"`
	Drain              field[any]          `toml:"drain"`
	Encapsulation      field[string]       `toml:"encapsulation"`
	EncapsulationPort  field[int64]        `toml:"encapsulation_port"`
	SNAT               field[any]          `toml:"snat"`
	MSSRoom            field[int64]        `toml:"mss_room"`
	RealServers        list[rawBackend]    `toml:"real_servers"`
}

type rawBackend struct {
	at      *node
	Address field[string] `toml:"address"`
	Weight  field[int64]  `toml:"weight"`
	Port    field[int64]  `toml:"port"`
	Upper   field[int64]  `toml:"upper"`
	Lower   field[int64]  `toml:"lower"`
}

type rawIPVS struct {
	at       *node
	Timeouts rawTimeouts `toml:"timeouts"`
	Sync     rawSync     `toml:"sync"`
}

type rawTimeouts struct {
	at     *node
	TCP    field[any] `toml:"tcp"`
	TCPFin field[any] `toml:"tcp_fin"`
	UDP    field[any] `toml:"udp"`
}

type rawSync struct {
	at        *node
	Role      field[string] `toml:"role"`
	Interface field[string] `toml:"interface"`
	ID        field[int64]  `toml:"id"`
}

func (r *rawRealServer) decode(n *node) { r.at = n; decodeTable(n, r) }
func (r *rawDirector) decode(n *node)   { r.at = n; decodeTable(n, r) }
func (r *rawBackend) decode(n *node)    { r.at = n; decodeTable(n, r) }
func (r *rawIPVS) decode(n *node)       { r.at = n; decodeTable(n, r) }
func (r *rawTimeouts) decode(n *node)   { r.at = n; decodeTable(n, r) }
func (r *rawSync) decode(n *node)       { r.at = n; decodeTable(n, r) }
