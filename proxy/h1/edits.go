package h1

import "fmt"

type editKind uint8

const (
	editSet editKind = iota // replaces what came
	editAdd                 // stands beside it
	editDel
)

type edit struct {
	name, value string
	kind        editKind
}

// edits are the changes to one head: a short list that is searched by length
// first, which is cheaper than a map for the few a proxy makes.
type edits struct {
	list    []edit
	lengths uint64 // a bit for the length of each name that replaces or removes
	err     error  // the first change that was refused
}

func (e *edits) reset() {
	clear(e.list) // the strings belong to the caller
	*e = edits{list: e.list[:0]}
}

func (e *edits) change(name, value string, kind editKind) {
	if err := editable(name, value, kind); err != nil {
		if e.err == nil {
			e.err = err
		}
		return
	}
	if kind != editAdd {
		e.lengths |= 1 << (len(name) & 63)
		kept := e.list[:0]
		for _, old := range e.list {
			if !equalFold(old.name, name) {
				kept = append(kept, old)
			}
		}
		e.list = kept
	}
	e.list = append(e.list, edit{name, value, kind})
}

// editable keeps the framing out of the caller's hands, and line breaks out of
// the head whatever the value was taken from.
func editable(name, value string, kind editKind) error {
	if !isToken(name) || !all(value, valueByte) {
		return fmt.Errorf("field %q: a byte that is not allowed in its name or value", name)
	}
	if kind == editDel {
		return nil
	}
	if kind == editAdd && lookup(name) == idHost {
		return fmt.Errorf("field %q can be set, not added: there must be one", name)
	}
	switch lookup(name) {
	case idOther, idHost, idExpect, idDate, idTrailer:
		return nil
	}
	return fmt.Errorf("field %q belongs to the framing or to one connection", name)
}

// drops reports whether a received field of that name is replaced or removed.
func (e *edits) drops(name []byte) bool {
	if e.lengths&(1<<(len(name)&63)) == 0 {
		return false
	}
	for i := range e.list {
		if e.list[i].kind != editAdd && equalFold(e.list[i].name, name) {
			return true
		}
	}
	return false
}

// sets reports whether the edits put a field of that name in.
func (e *edits) sets(name string) bool {
	for i := range e.list {
		if e.list[i].kind != editDel && equalFold(e.list[i].name, name) {
			return true
		}
	}
	return false
}

func (e *edits) appendTo(out []byte) []byte {
	for i := range e.list {
		if c := &e.list[i]; c.kind != editDel {
			out = appendField(out, c.name, c.value)
		}
	}
	return out
}

func appendField(out []byte, name, value string) []byte {
	out = append(out, name...)
	out = append(out, ": "...)
	out = append(out, value...)
	return append(out, '\r', '\n')
}
