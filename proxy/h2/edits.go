package h2

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

type editKind uint8

const (
	editSet editKind = iota // replaces what came
	editAdd                 // stands beside it
	editDel
)

type edit struct {
	field hpack.Field
	kind  editKind
}

// edits are the changes to one head: a short list that is searched by length
// first, which is cheaper than a map for the few a proxy makes.
type edits struct {
	list    []edit
	lengths uint64 // a bit for the length of each name that replaces or removes
	err     error  // the first change that was refused
	names   *names
}

func (e *edits) reset() {
	clear(e.list) // the strings belong to the caller
	e.list, e.lengths, e.err = e.list[:0], 0, nil
}

func (e *edits) change(name, value string, kind editKind) {
	f, err := e.editable(name, value, kind)
	if err != nil {
		if e.err == nil {
			e.err = err
		}
		return
	}
	c := edit{f, kind}
	if kind == editAdd {
		e.list = append(e.list, c)
		return
	}
	e.lengths |= 1 << (len(name) & 63)
	replaced := false
	for i := 0; i < len(e.list); {
		switch old := &e.list[i]; {
		case old.field.Name != f.Name:
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

// editable keeps the framing out of the caller's hands, and line breaks out of the
// head whatever the value was taken from.
func (e *edits) editable(name, value string, kind editKind) (hpack.Field, error) {
	f, ok := e.names.check(name)
	if !ok || !validValue(value) {
		return f, fmt.Errorf("field %q: a byte that is not allowed in its name or value", name)
	}
	if f.Value = value; kind == editDel {
		return f, nil
	}
	if kind == editAdd && f.Class == fieldHost {
		return f, fmt.Errorf("field %q can be set, not added: there must be one", name)
	}
	if f.Class == fieldHost && !all(value, hostByte) {
		return f, fmt.Errorf("field %q: a byte that is not allowed in a host", name)
	}
	switch f.Class {
	case plain, fieldHost, fieldExpect, fieldDate, fieldContentType, fieldTrailer:
		return f, nil
	}
	return f, fmt.Errorf("field %q belongs to the framing or to one connection", name)
}

// names remembers names that were found good, in lower case. Callers set the same few
// fields for every request, most often by constants, so that they are looked for by
// their address first; one that is not found displaces another.
type names [128]hpack.Field

func (n *names) check(name string) (f hpack.Field, ok bool) {
	if name == "" {
		return f, false
	}
	hash := uint64(uintptr(unsafe.Pointer(unsafe.StringData(name)))) * 0x9e3779b97f4a7c15
	at := int(hash >> 57)
	for i := range 4 {
		known := &n[(at+i)%len(n)]
		if equalFold(known.Name, name) {
			return *known, true
		}
		if known.Name == "" {
			at += i
			break
		}
	}
	if !isToken(name) {
		return f, false
	}
	f.Name = strings.ToLower(strings.Clone(name))
	f.Class = classifyName(f.Name)
	n[at%len(n)] = f
	return f, true
}

// drops reports whether a received field of that name is replaced or removed. An
// underscore is taken for a dash: to programs that get fields as variables (CGI, RFC
// 3875 section 4.1.18, and what came after it) both are one name.
func (e *edits) drops(name string) bool {
	if e.lengths&(1<<(len(name)&63)) == 0 {
		return false
	}
	for i := range e.list {
		if e.list[i].kind != editAdd && sameVariable(e.list[i].field.Name, name) {
			return true
		}
	}
	return false
}

func sameVariable(name, received string) bool {
	if name == received {
		return true
	}
	if len(name) != len(received) || strings.IndexByte(received, '_') < 0 {
		return false
	}
	for i := range len(name) {
		if c := received[i]; c != name[i] && (c != '_' || name[i] != '-') {
			return false
		}
	}
	return true
}

// value is what the edits put in a field of that name, if they do.
func (e *edits) value(name string) (string, bool) {
	for i := range e.list {
		if c := &e.list[i]; c.kind != editDel && c.field.Name == name {
			return c.field.Value, true
		}
	}
	return "", false
}

// appendTo encodes the fields that are put in, but for one: that is said elsewhere.
func (e *edits) appendTo(out []byte, enc *hpack.Encoder, but uint8) []byte {
	for i := range e.list {
		if c := &e.list[i]; c.kind != editDel && (c.field.Class != but || but == plain) {
			out = enc.Field(out, &c.field)
		}
	}
	return out
}

// view is b as a string without a copy: it changes when b does.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
