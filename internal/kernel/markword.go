package kernel

// The two kinds of marks.
const (
	ofPacket = iota
	ofConnection
	kindsOfMarks
)

// allBits are those of a mark.
const allBits uint32 = 1<<32 - 1

// word is what is known of four bytes of a register: which bits of marks it
// depends on, which it still has as they are, and which may be set.
type word struct {
	seen, kept [kindsOfMarks]uint32
	may        uint32
	shifted    int  // to the right
	swapped    bool // into the network's order
}

func (w word) marked() bool { return w.seen != [kindsOfMarks]uint32{} }

// origin are the bits of a mark that the word depends on.
func (w word) origin(kind int) uint32 {
	if w.shifted < 0 {
		return w.seen[kind] >> -w.shifted
	}
	return w.seen[kind] << w.shifted
}

// masked is the word after a bitwise and, and a bitwise exclusive or.
func (w word) masked(mask, xor uint32) word {
	for kind := range w.seen {
		w.seen[kind] &= mask
		w.kept[kind] &= mask &^ xor
	}
	w.may = w.may&mask | xor
	return w
}

// shift moves the word to the right by a number of bits, or to the left.
func (w word) shift(n int) word {
	move := func(v uint32) uint32 {
		if n < 0 {
			return v << -n
		}
		return v >> n
	}
	for kind := range w.seen {
		w.seen[kind], w.kept[kind] = move(w.seen[kind]), 0
	}
	w.may = move(w.may)
	w.shifted += n
	return w
}

// with is the word joined with another one by an operation.
func (w word) with(o word, operation uint32) word {
	for kind := range w.seen {
		kept := w.kept[kind]&^o.may | o.kept[kind]&^w.may
		if operation == bitwiseAnd {
			kept = 0
		}
		w.seen[kind], w.kept[kind] = w.seen[kind]|o.seen[kind], kept
	}
	w.may |= o.may
	return w
}
