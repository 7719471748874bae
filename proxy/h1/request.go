package h1

import (
	"bytes"
	"strings"
)

// Request is the head of a request as it was received. Its strings are views
// of the connection's buffer: valid until the Handler returns; what is kept must
// be copied (strings.Clone).
type Request struct {
	Method        string
	Target        string // origin-form ("/a?b") or "*"; an absolute-form is rewritten
	Host          string // of the absolute-form target, else of the Host field; may be empty
	Minor         int    // 1 for HTTP/1.1, 0 for HTTP/1.0
	ContentLength int64  // -1 when the body is chunked, 0 when there is none

	message
	lineDone  bool
	methodEnd int
	target    span
	authority span // of an absolute-form target
	absolute  bool
	expects   bool // Expect: 100-continue, from a client that may send it
}

type span struct{ from, to int }

func (s span) of(b []byte) string { return view(b[s.from:s.to]) }

// Path is Target up to the question mark.
func (r *Request) Path() string {
	path, _, _ := strings.Cut(r.Target, "?")
	return path
}

// Upgrade is the value of the Upgrade field when the client asks for a switch
// of protocols that would be passed on, else "". HTTP/1.0 cannot ask (RFC 9110
// section 7.8); a request with a body may be answered without a switch, so it
// always is; and h2c would carry requests past every rule of the caller.
func (r *Request) Upgrade() string {
	if r.upgrade < 0 || !r.switching || r.Minor == 0 || r.chunked || r.cl > 0 {
		return ""
	}
	f := r.fields[r.upgrade]
	value := view(r.b[f.value:f.valueEnd])
	for list := value; list != ""; {
		var e string
		if e, list = nextElement(list); len(e) >= 3 && equalFold(e[:3], "h2c") {
			return ""
		}
	}
	return value
}

func (r *Request) reset() {
	r.message.reset()
	r.Method, r.Target, r.Host = "", "", ""
	r.Minor, r.ContentLength = 0, 0
	r.methodEnd, r.target, r.authority = 0, span{}, span{}
	r.lineDone, r.absolute, r.expects = false, false, false
}

// parse reads a request head from b, which holds all that came of it so far.
// done is false when more is needed. The outcome does not depend on how the
// bytes were split.
func (r *Request) parse(b []byte, cfg *Config) (done bool, err error) {
	if !r.lineDone {
		line, end, ok, err := r.nextLine(b, min(cfg.MaxLineBytes, cfg.MaxHeadBytes), errLineTooLong)
		if err != nil || !ok {
			return false, err
		}
		if err := r.parseLine(line); err != nil {
			return false, err
		}
		r.line, r.seen, r.lineDone = end, end, true
	}
	if done, err = r.parseFields(b, cfg); !done || err != nil {
		return false, err
	}
	if err := r.framed(r.Minor); err != nil {
		return false, err
	}
	return true, r.complete()
}

// parseLine reads METHOD SP target SP version, RFC 9112 section 3.
func (r *Request) parseLine(line []byte) error {
	m := bytes.IndexByte(line, ' ')
	v := bytes.LastIndexByte(line, ' ')
	if m < 0 || v == m {
		return errRequestLine
	}
	if !isToken(line[:m]) {
		return errMethod
	}
	version := line[v+1:]
	switch {
	case string(version) == "HTTP/1.1":
		r.Minor = 1
	case string(version) == "HTTP/1.0":
		r.Minor = 0
	case len(version) == 8 && string(version[:5]) == "HTTP/" && isDigit(version[5]) && version[6] == '.' && isDigit(version[7]):
		return errVersion
	default:
		return errVersionForm
	}
	r.methodEnd, r.target = m, span{m + 1, v}
	return r.parseTarget(line)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseTarget tells the four forms apart, RFC 9112 section 3.2.
func (r *Request) parseTarget(line []byte) error {
	t := line[r.target.from:r.target.to]
	if len(t) == 0 || !all(t, targetByte) {
		return errTarget
	}
	method := line[:r.methodEnd]
	switch {
	case string(method) == "CONNECT":
		return errConnect
	case t[0] == '/':
		return nil
	case string(t) == "*":
		if string(method) != "OPTIONS" {
			return errTarget
		}
		return nil
	}
	var rest int
	switch {
	case len(t) > 7 && equalFold(t[:7], "http://"):
		rest = 7
	case len(t) > 8 && equalFold(t[:8], "https://"):
		rest = 8
	default:
		return errTarget
	}
	end := rest
	for end < len(t) && t[end] != '/' && t[end] != '?' {
		end++
	}
	if end == rest || !all(t[rest:end], hostByte) {
		return errTarget
	}
	r.absolute = true
	r.authority = span{r.target.from + rest, r.target.from + end}
	return nil
}

// complete makes the strings, once the head cannot move any more.
func (r *Request) complete() error {
	b := r.b
	switch {
	case r.hosts > 1:
		return errRepeatedHost
	case r.hosts == 0 && r.Minor == 1:
		return errNoHost
	}
	for _, f := range r.fields {
		switch f.id {
		case idHost:
			if r.Host = view(b[f.value:f.valueEnd]); !all(r.Host, hostByte) {
				return errHost
			}
		case idExpect:
			r.expects = r.expects || r.Minor == 1 && equalFold(b[f.value:f.valueEnd], "100-continue")
		}
	}
	r.Method = view(b[:r.methodEnd])
	if r.absolute {
		r.originForm(b)
	}
	r.Target = r.target.of(b)
	switch r.ContentLength = r.cl; {
	case r.chunked:
		r.ContentLength = -1
	case r.cl < 0:
		r.ContentLength = 0
	}
	return nil
}

// originForm rewrites an absolute target: its authority replaces Host (RFC 9112
// section 3.2.2), its rest is the target.
func (r *Request) originForm(b []byte) {
	a := r.authority
	switch {
	case a.to < r.target.to && b[a.to] == '/':
		r.target.from = a.to
	case a.to == r.target.to && r.Method == "OPTIONS":
		b[a.to], r.target = '*', span{a.to, a.to + 1} // over the space before the version, which is read already
	default:
		// "http://host?q" and "http://host" lack the slash: the authority moves
		// over the last byte of "//" and the slash takes its last byte's place.
		copy(b[a.from-1:], b[a.from:a.to])
		b[a.to-1] = '/'
		a = span{a.from - 1, a.to - 1}
		r.target.from = a.to
	}
	r.Host = a.of(b)
}
