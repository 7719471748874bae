package detect

import "bytes"

// preface begins every HTTP/2 connection with prior knowledge, RFC 9113 section 3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// methods may begin a request line that is not whole yet. It is the IANA
// registry without PRI. Another method is known once its line is whole.
var methods = [...]string{
	"ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "CONNECT", "COPY",
	"DELETE", "GET", "HEAD", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY",
	"MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "OPTIONS",
	"ORDERPATCH", "PATCH", "POST", "PROPFIND", "PROPPATCH", "PUT", "QUERY",
	"REBIND", "REPORT", "SEARCH", "TRACE", "UNBIND", "UNCHECKOUT", "UNLINK",
	"UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
}

// classifyHTTP tells an HTTP request from other talk.
//
// A line that is whole is told by its version, whatever its method: so that
// "get / HTTP/1.1" does not slip past the rules for HTTP in front of a server
// that takes it, and Redis's "GET key" stays opaque. A line that is not whole is
// told by a method of the registry and what may follow it. The start of a method
// alone asks for more: nobody sends "PO" and then waits for the server, and
// HTTP sent byte by byte must not pass as opaque. The price of not waiting for
// every word: a method outside the registry, sent in pieces, does pass as
// opaque, so what must be HTTP is better declared than detected.
func classifyHTTP(b []byte) (k Kind, more bool) {
	if len(b) < len(preface) && preface[:len(b)] == string(b) {
		return Opaque, true
	}
	if bytes.HasPrefix(b, []byte(preface)) {
		return HTTP2, false
	}
	b = skipEmptyLines(b)
	if line, _, whole := bytes.Cut(b, []byte("\n")); whole {
		if isRequestLine(bytes.TrimSuffix(line, []byte("\r"))) {
			return HTTP1, false
		}
		return Opaque, false
	}
	method, target, spaced := bytes.Cut(b, []byte(" "))
	if !spaced {
		return Opaque, startsMethod(string(method))
	}
	if !knownMethod(string(method)) {
		return Opaque, false
	}
	return classifyTarget(string(method), target)
}

// skipEmptyLines passes over the empty lines that a server should ignore before
// a request line, RFC 9112 section 2.2.
func skipEmptyLines(b []byte) []byte {
	for {
		switch {
		case bytes.HasPrefix(b, []byte("\r\n")):
			b = b[2:]
		case bytes.HasPrefix(b, []byte("\n")):
			b = b[1:]
		default:
			return b
		}
	}
}

// isRequestLine: a token, a space, anything, then a version. Whether the line
// is a good one is for the HTTP engine, which answers 400 or 505.
func isRequestLine(line []byte) bool {
	i := bytes.IndexByte(line, ' ')
	if i < 1 {
		return false
	}
	for _, c := range line[:i] {
		if !isTokenByte(c) {
			return false
		}
	}
	line = bytes.TrimRight(line[i:], " \t")
	const version = " HTTP/1.1"
	if len(line) < len(version) {
		return false
	}
	v := line[len(line)-len(version):]
	return string(v[:6]) == version[:6] && isDigit(v[6]) && v[7] == '.' && isDigit(v[8])
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isTokenByte: RFC 9110 section 5.6.2.
func isTokenByte(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' ||
		bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

func startsMethod(s string) bool {
	if s == "" {
		return false // only empty lines so far: a terminal, not a web client
	}
	for _, m := range methods {
		if len(s) <= len(m) && m[:len(s)] == s {
			return true
		}
	}
	return false
}

func knownMethod(s string) bool {
	for _, m := range methods {
		if m == s {
			return true
		}
	}
	return false
}

// classifyTarget looks at the beginning of a request target, RFC 9112 section
// 3.2, in a line that goes on. What could be Redis ("GET key") is waited for.
func classifyTarget(method string, target []byte) (k Kind, more bool) {
	if len(target) == 0 {
		return Opaque, true
	}
	switch c := target[0]; {
	case c == '/':
		return HTTP1, false
	case c == '*' && method == "OPTIONS":
		return HTTP1, false
	case method == "CONNECT" && (c == '[' || isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'z'):
		return HTTP1, false
	}
	for _, scheme := range [...]string{"http://", "https://"} {
		n := min(len(target), len(scheme))
		if bytes.EqualFold(target[:n], []byte(scheme[:n])) {
			if n == len(scheme) {
				return HTTP1, false
			}
			return Opaque, true
		}
	}
	return Opaque, false
}
