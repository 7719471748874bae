package hpack

// entry is a field in a dynamic table, its strings in table.text.
type entry struct {
	at          uint32 // the name begins here, the value follows it
	nameLen     uint32
	valueLen    uint32
	name, value uint32 // hashes
	class       uint8
	staticName  uint8
}

// table is a dynamic table, RFC 7541 section 2.3.2. It takes memory as it fills.
type table struct {
	max     int // bound of size
	size    int // as RFC 7541 section 4.1 counts
	added   int // entries ever; the newest is number added-1
	count   int // entries there now
	entries []entry
	text    []byte
	from    int // text before it belongs to nobody
}

func (t *table) entry(number int) *entry { return &t.entries[number&(len(t.entries)-1)] }

// newest is the entry with a dynamic index, of which 0 is the one added last.
func (t *table) newest(i int) (*entry, bool) {
	if i < 0 || i >= t.count {
		return nil, false
	}
	return t.entry(t.added - 1 - i), true
}

func (t *table) nameOf(e *entry) []byte { return t.text[e.at : e.at+e.nameLen] }
func (t *table) valueOf(e *entry) []byte {
	return t.text[e.at+e.nameLen : e.at+e.nameLen+e.valueLen]
}

// resize changes the bound.
func (t *table) resize(size int) {
	t.max = size
	t.makeRoom(0)
}

func (t *table) makeRoom(size int) {
	for t.count > 0 && t.size+size > t.max {
		oldest := t.entry(t.added - t.count)
		t.size -= int(oldest.nameLen+oldest.valueLen) + entryOverhead
		t.count--
		t.from = int(oldest.at + oldest.nameLen + oldest.valueLen)
	}
	if t.count == 0 {
		t.text, t.from = t.text[:0], 0
	}
}

// add puts a field in, in place of the oldest; one that is larger than the table
// empties it (RFC 7541 section 4.4). The strings must not lie in the table.
func (t *table) add(f *Field) {
	size := f.Size()
	if t.makeRoom(size); size > t.max {
		return
	}
	if t.count == len(t.entries) {
		t.growEntries()
	}
	need := len(f.Name) + len(f.Value)
	if len(t.text)+need > cap(t.text) && t.from > 0 && t.from >= len(t.text)/2 {
		t.compact()
	}
	*t.entry(t.added) = entry{
		at: uint32(len(t.text)), nameLen: uint32(len(f.Name)), valueLen: uint32(len(f.Value)),
		name: f.name, value: f.value, class: f.Class, staticName: f.staticName,
	}
	t.text = append(append(t.text, f.Name...), f.Value...)
	t.added++
	t.count++
	t.size += size
}

// growEntries doubles the ring; a full table of 4096 bytes has at most 128 entries.
func (t *table) growEntries() {
	old := t.entries
	t.entries = make([]entry, max(16, 2*len(old)))
	for i := t.added - t.count; i < t.added; i++ {
		*t.entry(i) = old[i&(len(old)-1)]
	}
}

// compact moves the strings of what is there to the front.
func (t *table) compact() {
	n := copy(t.text, t.text[t.from:])
	t.text = t.text[:n]
	for i := t.added - t.count; i < t.added; i++ {
		t.entry(i).at -= uint32(t.from)
	}
	t.from = 0
}
