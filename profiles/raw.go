package profiles

// The raw types are the keys of a profile and of sisod.toml as written,
// typed but not yet judged. Their toml tags are the complete list of keys.

type rawProfile struct {
	Uplink     tables[rawUplink]     `toml:"uplink"`
	Rule       list[rawRule]         `toml:"rule"`
	Route      list[rawRoute]        `toml:"route"`
	RealServer tables[rawRealServer] `toml:"real_server"`
	Director   tables[rawDirector]   `toml:"director"`
	IPVS       rawIPVS               `toml:"ipvs"`
	TProxy     tables[rawCapture]    `toml:"tproxy"`
}

type rawSettings struct {
	Priority field[int64] `toml:"priority"`
	Table    field[int64] `toml:"table"`
	MarkMask field[int64] `toml:"mark_mask"`
	Group    field[int64] `toml:"group"`
	Watch    field[bool]  `toml:"watch"`
}

type rawUplink struct {
	at         *node
	Interface  field[string]       `toml:"interface"`
	Gateway    field[any]          `toml:"gateway"`
	Table      field[int64]        `toml:"table"`
	Addresses  list[field[string]] `toml:"addresses"`
	Sources    list[field[string]] `toml:"sources"`
	Routes     list[rawWay]        `toml:"routes"`
	To         list[field[string]] `toml:"to"`
	Forward    field[bool]         `toml:"forward"`
	Masquerade field[bool]         `toml:"masquerade"`
	Guard      field[bool]         `toml:"guard"`
	RPFilter   field[any]          `toml:"rp_filter"`
	AdvMSS     field[int64]        `toml:"advmss"`
	MTU        field[int64]        `toml:"mtu"`
	Default    rawDefault          `toml:"default"`
}

type rawDefault struct {
	at     *node
	Metric field[int64] `toml:"metric"`
	Weight field[int64] `toml:"weight"`
}

type rawRule struct {
	at                   *node
	Priority             field[int64]  `toml:"priority"`
	Family               field[string] `toml:"family"`
	Not                  field[bool]   `toml:"not"`
	From                 field[string] `toml:"from"`
	To                   field[string] `toml:"to"`
	IIF                  field[string] `toml:"iif"`
	OIF                  field[string] `toml:"oif"`
	FWMark               field[any]    `toml:"fwmark"`
	IPProto              field[any]    `toml:"ipproto"`
	SPort                field[any]    `toml:"sport"`
	DPort                field[any]    `toml:"dport"`
	UIDRange             field[any]    `toml:"uidrange"`
	TOS                  field[any]    `toml:"tos"`
	Lookup               field[any]    `toml:"lookup"`
	Action               field[string] `toml:"action"`
	SuppressPrefixLength field[int64]  `toml:"suppress_prefixlength"`
	SuppressIfgroup      field[int64]  `toml:"suppress_ifgroup"`
}

type rawRoute struct {
	rawWay
	Table field[any] `toml:"table"`
}

// rawWay is a route without its table: an entry of an uplink's routes.
type rawWay struct {
	at       *node
	To       field[string]    `toml:"to"`
	Type     field[string]    `toml:"type"`
	Via      field[string]    `toml:"via"`
	Dev      field[string]    `toml:"dev"`
	OnLink   field[bool]      `toml:"onlink"`
	Src      field[string]    `toml:"src"`
	Metric   field[int64]     `toml:"metric"`
	MTU      field[int64]     `toml:"mtu"`
	AdvMSS   field[int64]     `toml:"advmss"`
	InitCwnd field[int64]     `toml:"initcwnd"`
	QuickAck field[bool]      `toml:"quickack"`
	Nexthops list[rawNexthop] `toml:"nexthops"`
}

type rawNexthop struct {
	at     *node
	Via    field[string] `toml:"via"`
	Dev    field[string] `toml:"dev"`
	OnLink field[bool]   `toml:"onlink"`
	Weight field[int64]  `toml:"weight"`
}

func (r *rawUplink) decode(n *node) {
	r.at = n
	decodeTable(n, r)
}

func (r *rawDefault) decode(n *node) { r.at = n; decodeTable(n, r) }
func (r *rawRule) decode(n *node)    { r.at = n; decodeTable(n, r) }
func (r *rawRoute) decode(n *node)   { r.at = n; decodeTable(n, r) }
func (r *rawWay) decode(n *node)     { r.at = n; decodeTable(n, r) }
func (r *rawNexthop) decode(n *node) { r.at = n; decodeTable(n, r) }
