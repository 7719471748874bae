package h2

import (
	"iter"
	"strings"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

// Classes of fields: what this package must know of one. They are found out once for
// each that comes as a literal and stay with it in the decoder's table.
const (
	plain uint8 = iota
	fieldHost
	fieldLength
	fieldTE
	fieldExpect
	fieldDate
	fieldContentType
	fieldTrailer

	pseudo // and those after it
	pseudoMethod
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoStatus
	pseudoProtocol // RFC 8441

	broken // and those after it
	brokenName
	brokenValue
	brokenPseudo
	brokenConn
)

// classify tells the class of a field.
func classify(name, value string) uint8 {
	switch {
	case name == "":
		return brokenName
	case !validValue(value):
		return brokenValue
	case name[0] == ':':
		return classifyPseudo(name)
	case !all(name, nameByte):
		return brokenName
	}
	c := classifyName(name)
	if c == fieldTE && value != "trailers" { // RFC 9113 section 8.2.2
		return brokenConn
	}
	return c
}

func classifyPseudo(name string) uint8 {
	switch name {
	case ":method":
		return pseudoMethod
	case ":scheme":
		return pseudoScheme
	case ":authority":
		return pseudoAuthority
	case ":path":
		return pseudoPath
	case ":status":
		return pseudoStatus
	case ":protocol":
		return pseudoProtocol
	}
	return brokenPseudo
}

func classifyName(name string) uint8 {
	switch name {
	case "te":
		return fieldTE
	case "host":
		return fieldHost
	case "date":
		return fieldDate
	case "expect":
		return fieldExpect
	case "trailer":
		return fieldTrailer
	case "content-length":
		return fieldLength
	case "content-type":
		return fieldContentType
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings":
		return brokenConn
	}
	return plain
}

func faultOf(class uint8) *refusal {
	switch class {
	case brokenValue:
		return errFieldValue
	case brokenPseudo:
		return errPseudo
	case brokenConn:
		return errConnField
	}
	return errFieldName
}

// message is what request and response heads have in common.
type message struct {
	head   hpack.Head
	fields []hpack.Field // of head, without the pseudo-header fields
	length int64         // content-length, -1 if there is none
	ctype  string        // content-type
}

func (m *message) reset() {
	m.head.Reset()
	m.fields, m.length, m.ctype = nil, -1, ""
}

// each takes the pseudo-header fields, which come first, and checks the others.
func (m *message) each(take func(f *hpack.Field) *refusal) *refusal {
	all := m.head.Fields
	n := 0
	for n < len(all) && all[n].Class > pseudo && all[n].Class < broken {
		if err := take(&all[n]); err != nil {
			return err
		}
		n++
	}
	m.fields = all[n:]
	for i := range m.fields {
		f := &m.fields[i]
		if f.Class == plain {
			continue
		}
		if err := m.note(f); err != nil {
			return err
		}
	}
	return nil
}

// note takes down what a field says that this package has to know.
func (m *message) note(f *hpack.Field) *refusal {
	switch {
	case f.Class > broken:
		return faultOf(f.Class)
	case f.Class > pseudo:
		return errPseudo
	case f.Class == fieldContentType:
		m.ctype = f.Value
	case f.Class == fieldLength:
		n, ok := parseLength(f.Value)
		if !ok || m.length >= 0 {
			return errLength
		}
		m.length = n
	}
	return nil
}

// Get is the value of the first field of that name, in any case.
func (m *message) Get(name string) (string, bool) { return get(m.fields, name) }

func get(fields []hpack.Field, name string) (string, bool) {
	for i := range fields {
		if f := &fields[i]; equalFold(f.Name, name) {
			return f.Value, true
		}
	}
	return "", false
}

// All are the names and values of the fields, in their order, as received: names are
// in lower case, and there are no pseudo-header fields.
func (m *message) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for i := range m.fields {
			if !yield(m.fields[i].Name, m.fields[i].Value) {
				return
			}
		}
	}
}

// GRPC reports whether the message is one of gRPC, by its content-type.
func (m *message) GRPC() bool {
	const want = "application/grpc"
	if !strings.HasPrefix(m.ctype, want) {
		return false
	}
	rest := m.ctype[len(want):] // application/grpc-web is something else
	return rest == "" || rest[0] == '+' || rest[0] == ';'
}

// parseLength reads digits only: no sign, no list, nothing above 2^60.
func parseLength(v string) (n int64, ok bool) {
	if len(v) == 0 {
		return 0, false
	}
	for i := 0; i < len(v); i++ {
		c := v[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int64(c-'0'); n > 1<<60 {
			return 0, false
		}
	}
	return n, true
}

// trailers checks a trailer section, which has no pseudo-header fields.
func checkTrailers(h *hpack.Head) *refusal {
	for i := range h.Fields {
		switch c := h.Fields[i].Class; {
		case c > broken:
			return faultOf(c)
		case c > pseudo:
			return errPseudo
		}
	}
	return nil
}

// inTrailer reports whether a field may be passed on in a trailer section: fields
// that frame or route a message have no business there (RFC 9110 section 6.5.1).
func inTrailer(f *hpack.Field) bool {
	return f.Class == plain || f.Class == fieldContentType || f.Class == fieldDate
}
