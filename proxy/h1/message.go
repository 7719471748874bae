package h1

import (
	"bytes"
	"iter"
	"strings"
	"time"
	"unsafe"
)

// fieldID names the fields whose meaning this package must know.
type fieldID uint8

const (
	idOther fieldID = iota
	idHost
	idConnection
	idContentLength
	idTransferEncoding
	idKeepAlive
	idProxyConnection
	idTE
	idTrailer
	idUpgrade
	idExpect
	idHTTP2Settings
	idDate
)

// lookup is by length first: most fields are done after one comparison.
func lookup[T string | []byte](name T) fieldID {
	switch len(name) {
	case 2:
		return match(name, "te", idTE)
	case 4:
		return match(name, "host", idHost) | match(name, "date", idDate)
	case 6:
		return match(name, "expect", idExpect)
	case 7:
		return match(name, "upgrade", idUpgrade) | match(name, "trailer", idTrailer)
	case 10:
		return match(name, "connection", idConnection) | match(name, "keep-alive", idKeepAlive)
	case 14:
		return match(name, "content-length", idContentLength) | match(name, "http2-settings", idHTTP2Settings)
	case 16:
		return match(name, "proxy-connection", idProxyConnection)
	case 17:
		return match(name, "transfer-encoding", idTransferEncoding)
	}
	return idOther
}

func match[T string | []byte](name T, want string, id fieldID) fieldID {
	if lower(name[0]) == want[0] && equalFold(name, want) {
		return id
	}
	return idOther
}

// field is one header line, by offsets into message.b, so that the buffer may
// move while the head is still arriving.
type field struct {
	start, nameEnd, value, valueEnd, end int32
	id                                   fieldID
}

// message is what request and response heads have in common.
type message struct {
	b      []byte // the head, from its first byte; set when it is complete
	fields []field
	line   int // where the line being read begins
	seen   int // no line feed between line and here

	cl        int64 // Content-Length, -1 if there is none
	chunked   bool
	close     bool // Connection: close
	keepAlive bool // Connection: keep-alive
	switching bool // Connection: upgrade
	trailers  bool // TE: trailers
	hosts     int
	upgrade   int           // index of the Upgrade field, -1 if there is none
	life      time.Duration // how long an idle connection may be used, by Keep-Alive; 0 if that does not say
	named     []string      // other fields that Connection names; views, made when complete
}

// maxNamed bounds the fields that Connection may name: each costs a comparison per field.
const maxNamed = 16

// reset does not assign the whole: that would copy it.
func (m *message) reset() {
	m.b, m.fields, m.named = nil, m.fields[:0], m.named[:0]
	m.line, m.seen, m.hosts = 0, 0, 0
	m.cl, m.upgrade, m.life = -1, -1, 0
	m.chunked, m.close, m.keepAlive, m.switching, m.trailers = false, false, false, false, false
}

// nextLine finds the end of the current line in b, the bytes that are there. It
// returns the line without CRLF and the offset after it, or ok false if more is
// needed. A line that ends beyond limit is an error, however it arrived.
func (m *message) nextLine(b []byte, limit int, tooLong error) (line []byte, end int, ok bool, err error) {
	i := bytes.IndexByte(b[m.seen:], '\n')
	if i < 0 {
		m.seen = len(b)
		if len(b) >= limit {
			return nil, 0, false, tooLong
		}
		return nil, 0, false, nil
	}
	end = m.seen + i + 1
	if end > limit {
		return nil, 0, false, tooLong
	}
	line = b[m.line : end-1]
	if len(line) == 0 || line[len(line)-1] != '\r' {
		return nil, 0, false, errBareLF
	}
	return line[:len(line)-1], end, true, nil
}

// parseFields reads header lines up to and with the empty one. done is false
// when more bytes are needed; call again with all bytes, old ones first.
func (m *message) parseFields(b []byte, cfg *Config) (done bool, err error) {
	for {
		line, end, ok, err := m.nextLine(b, cfg.MaxHeadBytes, errHeadTooLarge)
		if err != nil || !ok {
			return false, err
		}
		if len(line) == 0 {
			m.line, m.seen = end, end
			m.b = b[:end]
			return true, nil
		}
		if len(m.fields) >= cfg.MaxFields {
			return false, errTooManyFields
		}
		f, err := parseField(line, m.line, end)
		if err != nil {
			return false, err
		}
		if f.id != idOther {
			if err := m.note(f, b, len(m.fields)); err != nil {
				return false, err
			}
		}
		m.fields = append(m.fields, f)
		m.line, m.seen = end, end
	}
}

// parseField reads one line that begins at offset start, RFC 9112 section 5.
func parseField(line []byte, start, end int) (f field, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return f, errFold
	}
	n := 0
	for n < len(line) && class[line[n]]&tokenByte != 0 {
		n++
	}
	switch {
	case n == len(line):
		return f, errNoColon
	case line[n] != ':':
		return f, errFieldName // a space before the colon is one of these
	case n == 0:
		return f, errEmptyName
	}
	v := n + 1
	if !validValue(line[v:]) {
		return f, errFieldValue
	}
	value := line[v:]
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
		v++
	}
	value = trimOWS(value)
	return field{
		start: int32(start), nameEnd: int32(start + n),
		value: int32(start + v), valueEnd: int32(start + v + len(value)),
		end: int32(end), id: lookup(line[:n]),
	}, nil
}

// note takes down what a field says about framing and the connection.
func (m *message) note(f field, b []byte, index int) error {
	v := b[f.value:f.valueEnd]
	switch f.id {
	case idHost:
		m.hosts++
	case idContentLength:
		if m.cl >= 0 {
			return errRepeatedLength
		}
		n, ok := parseLength(v)
		if !ok {
			return errLength
		}
		m.cl = n
	case idTransferEncoding:
		if m.chunked || !equalFold(v, "chunked") {
			return errEncoding
		}
		m.chunked = true
	case idConnection:
		return m.noteConnection(view(v))
	case idKeepAlive:
		m.life = lifeOf(view(v))
	case idTE:
		for e, rest := nextElement(view(v)); ; e, rest = nextElement(rest) {
			m.trailers = m.trailers || equalFold(e, "trailers")
			if rest == "" {
				break
			}
		}
	case idUpgrade:
		if m.upgrade >= 0 {
			return errRepeatedUpgrade
		}
		m.upgrade = index
	}
	return nil
}

// lifeOf reads "timeout=N" of Keep-Alive, after how many idle seconds the sender closes
// (RFC 2068 section 19.7.1.1), and gives the time until the last of them: a request
// that is sent then may find the connection closed. 0 is for a value that does not say.
func lifeOf(list string) time.Duration {
	for list != "" {
		var e string
		e, list = nextElement(list)
		name, value, _ := strings.Cut(e, "=")
		if !equalFold(name, "timeout") {
			continue
		}
		n, ok := parseLength(strings.Trim(value, `"`))
		switch {
		case !ok:
			return 0
		case n == 0:
			return 1
		case n == 1:
			return time.Second / 2 // all of it would be the last
		}
		return time.Duration(min(n, 1<<30)-1) * time.Second
	}
	return 0
}

func (m *message) noteConnection(list string) error {
	for list != "" {
		var e string
		e, list = nextElement(list)
		switch {
		case e == "":
		case !isToken(e):
			return errConnection
		case equalFold(e, "close"):
			m.close = true
		case equalFold(e, "keep-alive"):
			m.keepAlive = true
		case equalFold(e, "upgrade"):
			m.switching = true
		}
	}
	return nil
}

// framed checks what only the whole head can tell, and makes the views that
// must not exist while the buffer may still move.
func (m *message) framed(minor int) error {
	if m.chunked && (m.cl >= 0 || minor == 0) {
		return errBothFramings
	}
	for _, f := range m.fields {
		if f.id != idConnection {
			continue
		}
		for list := view(m.b[f.value:f.valueEnd]); list != ""; {
			var e string
			e, list = nextElement(list)
			if e == "" || equalFold(e, "close") || equalFold(e, "keep-alive") || lookup(e) != idOther {
				continue // what we know is treated by its own rule
			}
			if len(m.named) == maxNamed {
				return errConnection
			}
			m.named = append(m.named, e)
		}
	}
	return nil
}

// isNamed reports whether Connection names the field (RFC 9110 section 7.6.1).
func (m *message) isNamed(name []byte) bool {
	for _, n := range m.named {
		if equalFold(name, n) {
			return true
		}
	}
	return false
}

func (m *message) name(f *field) []byte { return m.b[f.start:f.nameEnd] }

// Get is the value of the first field of that name, in any case.
func (m *message) Get(name string) (string, bool) {
	for i := range m.fields {
		f := &m.fields[i]
		if int(f.nameEnd-f.start) == len(name) && equalFold(m.name(f), name) {
			return view(m.b[f.value:f.valueEnd]), true
		}
	}
	return "", false
}

// All are the names and values of the fields, in their order, as received.
func (m *message) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for i := range m.fields {
			f := &m.fields[i]
			if !yield(view(m.name(f)), view(m.b[f.value:f.valueEnd])) {
				return
			}
		}
	}
}

// Chunked reports whether the body comes in chunks.
func (m *message) Chunked() bool { return m.chunked }

// parseLength reads digits only: no sign, no list, nothing above 2^60.
func parseLength[T string | []byte](v T) (n int64, ok bool) {
	if len(v) == 0 {
		return 0, false
	}
	for i := range len(v) {
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

// view is b as a string without a copy: it changes when the buffer does.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
