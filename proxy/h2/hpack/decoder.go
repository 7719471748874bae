package hpack

import "fmt"

// Decoder decodes the blocks that one end of a connection sends, in their order.
// The zero Decoder is ready for use.
type Decoder struct {
	// Classify, if not nil, is called once for each field that comes as a literal,
	// and its answer kept with the field wherever it goes.
	Classify func(name, value string) uint8

	table   table
	ready   bool
	classes [staticLen + 1]uint8 // of the static table
}

func (d *Decoder) begin() {
	d.table.max, d.ready = DefaultTableSize, true
	if d.Classify == nil {
		return
	}
	for i := 1; i <= staticLen; i++ {
		d.classes[i] = d.Classify(staticFields[i].Name, staticFields[i].Value)
	}
}

// errLateUpdate is refused by RFC 7541 section 4.2.
var errLateUpdate = fmt.Errorf("%w: the size of the table changes after a field", ErrMalformed)

// Limits bound what is kept of a head: its size as RFC 9113 section 6.5.2 counts,
// and the number of its fields.
type Limits struct{ Size, Fields int }

// Decode appends the fields of a whole block to h. Beyond the limits it goes on,
// for the sake of the table, but keeps nothing more. The error wraps ErrMalformed.
// What a block makes it hold is bounded by 8/5 of the block.
func (d *Decoder) Decode(h *Head, block []byte, limits Limits) error {
	if !d.ready {
		d.begin()
	}
	for begun := false; len(block) > 0; {
		var ok bool
		switch c := block[0]; {
		case c&0x80 != 0:
			block, ok = d.indexed(h, block, limits)
		case c&0xe0 == 0x20:
			if begun {
				return errLateUpdate
			}
			if block, ok = d.update(block); ok {
				continue
			}
		default:
			block, ok = d.literal(h, block, limits)
		}
		if begun = true; !ok {
			return ErrMalformed
		}
	}
	return nil
}

func (d *Decoder) update(block []byte) (rest []byte, ok bool) {
	n, rest, ok := readInt(block, 5)
	if !ok || n > DefaultTableSize {
		return nil, false
	}
	d.table.resize(n)
	return rest, true
}

// admit counts a field, and tells whether it is to be kept.
func (h *Head) admit(size int, limits Limits) bool {
	h.Size += size
	if h.Size > limits.Size || len(h.Fields) >= limits.Fields {
		h.Over = true
	}
	return !h.Over
}

func (d *Decoder) indexed(h *Head, block []byte, limits Limits) (rest []byte, ok bool) {
	n, rest, ok := readInt(block, 7)
	if !ok || n == 0 {
		return nil, false
	}
	if n <= staticLen {
		f := &staticFields[n]
		if h.admit(f.Size(), limits) {
			h.Fields = append(h.Fields, *f)
			h.Fields[len(h.Fields)-1].Class = d.classes[n]
		}
		return rest, true
	}
	e, ok := d.table.newest(n - staticLen - 1)
	if !ok {
		return nil, false
	}
	if h.admit(int(e.nameLen+e.valueLen)+entryOverhead, limits) {
		text := h.keep(d.table.text[e.at : e.at+e.nameLen+e.valueLen])
		h.Fields = append(h.Fields, Field{
			Name: text[:e.nameLen], Value: text[e.nameLen:], Class: e.class,
			staticName: e.staticName, name: e.name, value: e.value,
		})
	}
	return rest, true
}

func (d *Decoder) literal(h *Head, block []byte, limits Limits) (rest []byte, ok bool) {
	var f Field
	bits, index := uint(4), false
	switch c := block[0]; {
	case c&0x40 != 0:
		bits, index = 6, true
	case c&0x10 != 0:
		f.Sensitive = true
	}
	n, rest, ok := readInt(block, bits)
	if !ok {
		return nil, false
	}
	mark := len(h.text)
	switch {
	case n == 0:
		f.Name, rest, ok = h.readString(rest)
	case n <= staticLen:
		s := &staticFields[n]
		f.Name, f.name, f.staticName = s.Name, s.name, s.staticName
	default:
		var e *entry
		if e, ok = d.table.newest(n - staticLen - 1); ok {
			f.Name, f.name, f.staticName = h.keep(d.table.nameOf(e)), e.name, e.staticName
		}
	}
	if !ok {
		return nil, false
	}
	if f.Value, rest, ok = h.readString(rest); !ok {
		return nil, false
	}
	if d.Classify != nil {
		f.Class = d.Classify(f.Name, f.Value)
	}
	if index {
		f.computeHashes()
		d.table.add(&f)
	}
	if h.admit(f.Size(), limits) {
		h.Fields = append(h.Fields, f)
	} else {
		h.text = h.text[:mark]
	}
	return rest, true
}

// readString reads a string into the head's memory, RFC 7541 section 5.2.
func (h *Head) readString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 {
		return "", nil, false
	}
	huffman := b[0]&0x80 != 0
	n, b, ok := readInt(b, 7)
	if !ok || n > len(b) {
		return "", nil, false
	}
	if !huffman {
		return h.keep(b[:n]), b[n:], true
	}
	at := len(h.text)
	if h.text == nil {
		h.text = make([]byte, 0, max(1024, 4*n))
	}
	if h.text, ok = appendHuffman(h.text, b[:n]); !ok {
		return "", nil, false
	}
	return view(h.text[at:]), b[n:], true
}
