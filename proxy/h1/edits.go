package h1

import (
	"fmt"
	"slices"
	"unsafe"
)

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
	names   *names // known to be good; may be nil
}

func (e *edits) reset() {
	clear(e.list) // the strings belong to the caller
	e.list, e.lengths, e.err = e.list[:0], 0, nil
}

func (e *edits) change(name, value string, kind editKind) {
	if err := e.editable(name, value, kind); err != nil {
		if e.err == nil {
			e.err = err
		}
		return
	}
	c := edit{name, value, kind}
	if kind == editAdd {
		e.list = append(e.list, c)
		return
	}
	e.lengths |= 1 << (len(name) & 63)
	replaced := false
	for i := 0; i < len(e.list); {
		switch old := &e.list[i]; {
		case len(old.name) != len(name) || !equalFold(old.name, name):
			i++
		case !replaced:
			*old, replaced = c, true
			i++
		default:
			e.list = slices.Delete(e.list, i, i+1)
		}
	}
	if !replaced {
		e.list = append(e.list, c)
	}
}

// editable keeps the framing out of the caller's hands, and line breaks out of
// the head whatever the value was taken from.
func (e *edits) editable(name, value string, kind editKind) error {
	id, ok := e.names.check(name)
	if !ok || !validValue(value) {
		return fmt.Errorf("field %q: a byte that is not allowed in its name or value", name)
	}
	if kind == editDel {
		return nil
	}
	if kind == editAdd && id == idHost {
		return fmt.Errorf("field %q can be set, not added: there must be one", name)
	}
	switch id {
	case idOther, idHost, idExpect, idDate, idTrailer:
		return nil
	}
	return fmt.Errorf("field %q belongs to the framing or to one connection", name)
}

// names remembers names that were found good. Callers set the same few fields
// for every request, most often by constants: the same string, not only an equal
// one. Holding on to it keeps its address from meaning another.
type names [64]struct {
	name string
	id   fieldID
}

func (n *names) check(name string) (id fieldID, ok bool) {
	if n == nil || name == "" {
		return lookup(name), isToken(name)
	}
	at := unsafe.StringData(name)
	known := &n[(uintptr(unsafe.Pointer(at))>>3^uintptr(len(name)))%uintptr(len(n))]
	if unsafe.StringData(known.name) == at && len(known.name) == len(name) {
		return known.id, true
	}
	if !isToken(name) {
		return idOther, false
	}
	known.name, known.id = name, lookup(name)
	return known.id, true
}

// drops reports whether a received field of that name is replaced or removed. An
// underscore is taken for a dash: to programs that get fields as variables (CGI, RFC
// 3875 section 4.1.18, and what came after it) both are one name.
func (e *edits) drops(name []byte) bool {
	if e.lengths&(1<<(len(name)&63)) == 0 {
		return false
	}
	for i := range e.list {
		if len(e.list[i].name) == len(name) && e.list[i].kind != editAdd && sameVariable(e.list[i].name, name) {
			return true
		}
	}
	return false
}

func sameVariable(name string, received []byte) bool {
	for i := range received {
		if c := received[i]; c != name[i] && lower(c) != lower(name[i]) && (c != '_' || name[i] != '-') {
			return false
		}
	}
	return true
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
