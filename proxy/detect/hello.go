package detect

import (
	"slices"
	"strings"
)

// Hello is what a TLS ClientHello asks for.
type Hello struct {
	ServerName string   // SNI, lower-case; "" when absent
	ALPN       []string // in the client's order
	Mesh       bool     // ALPN contains MeshALPN
	// Encrypted tells that the hello holds another, encrypted one (ECH), which
	// says where it really goes: ServerName is then of whoever decrypts it. Some
	// browsers make hellos look so that are not.
	Encrypted bool
}

// RFC 8446 sections 5.1 and 4, RFC 6066 section 3, RFC 7301 section 3.1, RFC 9849
// section 5.
const (
	recordHandshake  = 22
	recordHeader     = 5
	maxRecord        = 1<<14 + 256 // what a TLS 1.2 peer may send; hellos are plain
	clientHello      = 1
	handshakeHeader  = 4
	extServerName    = 0
	extALPN          = 16
	extECH           = 0xfe0d
	echOuter         = 0
	serverNameIsHost = 0
)

// classifyTLS takes the ClientHello out of its records.
//
// It is parsed here and not by crypto/tls with a sentinel error, because that
// cannot say that bytes are missing without an error to guess from, and costs a
// connection object for each look. crypto/tls is the oracle in the tests. To
// take mesh TLS for the application's, or the reverse, does not open a door:
// the first is refused where only the mesh may come in, the second fails its
// handshake.
func classifyTLS(b []byte) (r Result, more bool) {
	// The first record has a version of the SSL 3 family, as all since have. The
	// versions of the others mean nothing, RFC 8446 section 5.1.
	if len(b) > 1 && b[1] != 3 {
		return Result{}, false
	}
	var hello []byte // the handshake messages, records joined
	records := b
	for {
		payload, rest, state := nextRecord(records)
		if state == broken {
			// The first record decides whether it is TLS at all.
			if len(hello) == 0 {
				return Result{}, false
			}
			return Result{Kind: TLS}, false
		}
		if len(hello) == 0 && len(payload) > 0 && payload[0] != clientHello {
			return Result{}, false
		}
		hello = append(hello, payload...)
		if body, ok := helloBody(hello); ok {
			return Result{Kind: TLS, Hello: parseHello(body)}, false
		}
		if state == partial {
			break
		}
		records = rest
	}
	kind := Opaque
	if len(hello) > 0 {
		kind = TLS
	}
	return Result{Kind: kind}, true
}

type recordState uint8

const (
	whole recordState = iota
	partial
	broken
)

// nextRecord takes one record off b. Of a partial one it gives what is there.
func nextRecord(b []byte) (payload, rest []byte, state recordState) {
	if len(b) > 0 && b[0] != recordHandshake {
		return nil, nil, broken
	}
	if len(b) < recordHeader {
		return nil, nil, partial
	}
	n := int(b[3])<<8 | int(b[4])
	if n == 0 || n > maxRecord {
		return nil, nil, broken
	}
	b = b[recordHeader:]
	if len(b) < n {
		return b, nil, partial
	}
	return b[:n], b[n:], whole
}

// helloBody is the ClientHello in the handshake messages, once it is whole.
func helloBody(msg []byte) (body []byte, ok bool) {
	if len(msg) < handshakeHeader {
		return nil, false
	}
	n := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
	if len(msg)-handshakeHeader < n {
		return nil, false
	}
	return msg[handshakeHeader:][:n], true
}

// parseHello reads a ClientHello, RFC 8446 section 4.1.2; nil if it is broken.
func parseHello(body []byte) *Hello {
	c := cursor{b: body}
	c.take(2 + 32)      // legacy_version, random
	c.take(c.number(1)) // legacy_session_id
	c.take(c.number(2)) // cipher_suites
	c.take(c.number(1)) // legacy_compression_methods
	h := &Hello{}
	if len(c.b) == 0 && !c.bad { // a hello without extensions is good, if old
		return h
	}
	extensions := cursor{b: c.take(c.number(2))}
	if c.bad || len(c.b) != 0 {
		return nil
	}
	var seen []int
	for len(extensions.b) > 0 {
		kind := extensions.number(2)
		data := cursor{b: extensions.take(extensions.number(2))}
		if extensions.bad || slices.Contains(seen, kind) {
			return nil // the same extension twice: two readers could differ
		}
		seen = append(seen, kind)
		ok := true
		switch kind {
		case extServerName:
			h.ServerName, ok = parseServerName(data)
		case extALPN:
			h.ALPN, ok = parseALPN(data)
		case extECH:
			h.Encrypted = len(data.b) > 0 && data.b[0] == echOuter
		}
		if !ok {
			return nil
		}
	}
	h.Mesh = slices.Contains(h.ALPN, MeshALPN)
	return h
}

func parseServerName(ext cursor) (name string, ok bool) {
	list := cursor{b: ext.take(ext.number(2))}
	if ext.bad || len(ext.b) != 0 || len(list.b) == 0 {
		return "", false
	}
	for len(list.b) > 0 {
		kind := list.number(1)
		value := list.take(list.number(2))
		if list.bad || len(value) == 0 {
			return "", false
		}
		if kind != serverNameIsHost {
			continue
		}
		if name != "" { // RFC 6066 forbids two of a type
			return "", false
		}
		name = strings.ToLower(string(value))
		if strings.HasSuffix(name, ".") {
			return "", false // RFC 6066: without a trailing dot
		}
	}
	return name, true
}

func parseALPN(ext cursor) (protocols []string, ok bool) {
	list := cursor{b: ext.take(ext.number(2))}
	if ext.bad || len(ext.b) != 0 || len(list.b) == 0 {
		return nil, false
	}
	for len(list.b) > 0 {
		p := list.take(list.number(1))
		if list.bad || len(p) == 0 {
			return nil, false
		}
		protocols = append(protocols, string(p))
	}
	return protocols, true
}

// cursor takes fields off the front of b. Once one is not there it is bad and
// gives nothing more.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	var field []byte
	field, c.b = c.b[:n:n], c.b[n:]
	return field
}

// number takes a big-endian number of so many bytes.
func (c *cursor) number(bytes int) (n int) {
	for _, v := range c.take(bytes) {
		n = n<<8 | int(v)
	}
	return n
}
