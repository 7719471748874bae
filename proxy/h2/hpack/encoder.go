package hpack

// Encoder encodes the blocks that one end of a connection sends, in their order.
// The zero Encoder is ready for use.
type Encoder struct {
	table table
	ready bool

	// find has, by a field's hash, the number of its entry, plus one; whoever comes
	// to a place last has it. seen has hashes of fields that were sent as literals.
	find [slots]uint32
	seen [slots]uint32

	updates int // 1: tell the peer the size of the table; 2: that it was empty before, too
	least   int
}

const slots = 128 // as many as a table of 4096 bytes has entries at most

// SetMaxTableSize does as the peer's SETTINGS_HEADER_TABLE_SIZE says. The peer is
// told with the next block, RFC 7541 section 4.2.
func (e *Encoder) SetMaxTableSize(n uint32) {
	e.begin()
	size := int(min(n, DefaultTableSize))
	if size == e.table.max {
		return
	}
	if e.updates == 0 || size < e.least {
		e.least = size
	}
	e.updates = 1
	if e.least < size {
		e.updates = 2
	}
	e.table.resize(size)
}

func (e *Encoder) begin() {
	if !e.ready {
		e.table.max, e.ready = DefaultTableSize, true
	}
}

// Begin must be called before the first field of each block.
func (e *Encoder) Begin(out []byte) []byte {
	e.begin()
	if e.updates == 0 {
		return out
	}
	if e.updates == 2 {
		// The least size meanwhile has to be told first. The decoder of x/net, which
		// grpc-go uses, takes two updates in a row only if nothing is left after the
		// first: so the table is emptied.
		size := e.table.max
		e.table.resize(0)
		e.table.resize(size)
		out = append(out, 0x20)
	}
	e.updates = 0
	return appendInt(out, 0x20, 5, e.table.max)
}

// Field appends one field. It keeps what it learns about f in f.
func (e *Encoder) Field(out []byte, f *Field) []byte {
	if f.static != 0 && !f.Sensitive {
		return append(out, 0x80|f.static)
	}
	f.computeHashes()
	if f.staticName == 0 || f.static == 0 && f.staticName <= 16 { // the only names with values there
		f.findStatic()
	}
	if f.Sensitive {
		return appendLiteral(out, 0x10, 4, f)
	}
	if f.static != 0 {
		return append(out, 0x80|f.static)
	}
	hash := f.pair()
	slot := &e.find[hash%slots]
	if number := int(*slot) - 1; number >= 0 && number >= e.table.added-e.table.count && number < e.table.added {
		en := e.table.entry(number)
		if en.name == f.name && en.value == f.value && string(e.table.nameOf(en)) == f.Name && string(e.table.valueOf(en)) == f.Value {
			return appendInt(out, 0x80, 7, staticLen+e.table.added-number)
		}
	}
	if e.seen[hash%slots] != hash || f.Size() > e.table.max/2 {
		e.seen[hash%slots] = hash
		return appendLiteral(out, 0, 4, f)
	}
	if e.table.added >= 1<<31 { // numbers would not fit find any more
		return appendLiteral(out, 0, 4, f)
	}
	*slot = uint32(e.table.added) + 1
	e.table.add(f)
	return appendLiteral(out, 0x40, 6, f)
}

// appendLiteral appends the field as a literal, its name by number where the static
// table has it.
func appendLiteral(out []byte, first byte, bits uint, f *Field) []byte {
	out = appendInt(out, first, bits, int(f.staticName))
	if f.staticName == 0 {
		out = appendInt(out, 0, 7, len(f.Name))
		out = append(out, f.Name...)
	}
	out = appendInt(out, 0, 7, len(f.Value))
	return append(out, f.Value...)
}
