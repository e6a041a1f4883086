package profiles

import (
	"fmt"
	"time"
)

var syncRoles = []string{"master", "backup", "both"}

// ipvs judges [ipvs].
func (b *builder) ipvs(raw rawIPVS) *IPVS {
	v := &IPVS{Pos: raw.at.pos()}
	v.TCP, _ = duration(raw.Timeouts.TCP, time.Second)
	v.TCPFin, _ = duration(raw.Timeouts.TCPFin, time.Second)
	v.UDP, _ = duration(raw.Timeouts.UDP, time.Second)
	if raw.Sync.at != nil && raw.Sync.at.shape == table {
		v.Sync = synchronisation(raw.Sync)
	}
	return v
}

// synchronisation judges `sync`.
func synchronisation(raw rawSync) *Sync {
	s := &Sync{Pos: raw.at.pos()}
	const all = `"master" (tells its connections), "backup" (learns them) or "both"`
	known := keysOf[rawSync]()
	if f := raw.Role; f.at == nil && !misspelt(raw.at, "role", known) {
		raw.at.badKey("sync has no role", "role = "+all)
	} else if f.ok {
		s.Master, s.Backup = f.v == "master" || f.v == "both", f.v == "backup" || f.v == "both"
		if !s.Master && !s.Backup {
			hint := all
			if best := near(f.v, syncRoles); best != "" {
				hint = fmt.Sprintf("did you mean %q? %s", best, hint)
			}
			f.at.bad(fmt.Sprintf("role cannot be %q", f.v), hint)
		}
	}
	name, ok := link(raw.Interface)
	switch {
	case raw.Interface.at == nil && !misspelt(raw.at, "interface", known):
		raw.at.badKey("sync has no interface", `interface = "eth0", the one towards the other director: connections are told by multicast`)
	case ok && name == "lo":
		raw.Interface.at.bad("on lo there is no other director", "the interface towards the other director: connections are told by multicast")
	case ok:
		s.Interface = name
	}
	if v, ok := within(raw.ID, 0, 255, "the same on directors that belong together; a backup with 0 listens to every master"); ok {
		s.ID = int(v)
	}
	return s
}
