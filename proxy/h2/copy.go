package h2

import (
	"strconv"
	"time"
)

// SetStreamIdle takes the place of Config.StreamIdle in this exchange.
func (x *Exchange) SetStreamIdle(d time.Duration) { x.pause = d }

// streamIdle is how long the upstream may be silent inside the response body.
func (x *Exchange) streamIdle() time.Duration {
	if x.pause > 0 {
		return x.pause
	}
	return x.s.cfg.StreamIdle
}

// Whole reports whether all of the request body has come from the client.
func (x *Exchange) Whole() bool { return x.client.inEnded }

// KeepBody has what came of the request body kept after the answer too, as far as it
// is kept at all, for AppendCopy.
func (x *Exchange) KeepBody() { x.kept = true }

// Nth is the value of the field of that name after n others of the same name. A client
// may send each cookie in a field of its own (RFC 9113 section 8.2.3).
func (x *Exchange) Nth(name string, n int) (string, bool) {
	for i := range x.req.fields {
		if f := &x.req.fields[i]; equalFold(f.Name, name) {
			if n--; n < 0 {
				return f.Value, true
			}
		}
	}
	return "", false
}

// AppendCopy appends the request as RoundTrip sends it, but as HTTP/1.1 text and with
// one field more. Trailers are left out. ok is false, and nothing appended, while not
// all of the body is at hand, and when some of it is not kept any more
// (Config.ReplayBytes).
func (x *Exchange) AppendCopy(out []byte, name, value string) (_ []byte, ok bool) {
	c, r := &x.client, &x.req
	if !c.inEnded || !c.whole || c.err != nil || x.toUpstream.err != nil {
		return out, false
	}
	target := r.path
	if x.target != "" {
		target = x.target
	}
	host, set := x.toUpstream.value("host")
	if !set {
		host = r.authority
	}
	out = append(append(append(append(out, r.method...), ' '), target...), " HTTP/1.1\r\n"...)
	out = appendText(out, "Host", host)
	for i := range r.fields {
		if f := &r.fields[i]; f.Class != fieldHost && f.Name != "te" && f.Name != "content-length" && f.Name != "cookie" && !x.toUpstream.drops(f.Name) {
			out = appendText(out, f.Name, f.Value)
		}
	}
	out = x.appendCookies(out)
	for i := range x.toUpstream.list {
		if e := &x.toUpstream.list[i]; e.kind != editDel && e.field.Class != fieldHost {
			out = appendText(out, e.field.Name, e.field.Value)
		}
	}
	out = appendText(out, name, value)
	if n := c.in.left + c.in.kept; n > 0 || r.length >= 0 {
		out = append(strconv.AppendInt(append(out, "Content-Length: "...), int64(n), 10), "\r\n"...)
	}
	return c.in.appendAll(append(out, "\r\n"...)), true
}

// appendCookies appends the cookies in one field, as HTTP/1.1 has them.
func (x *Exchange) appendCookies(out []byte) []byte {
	if x.toUpstream.drops("cookie") {
		return out
	}
	for n := 0; ; n++ {
		v, ok := x.Nth("cookie", n)
		switch {
		case !ok && n == 0:
			return out
		case !ok:
			return append(out, "\r\n"...)
		case n == 0:
			out = append(out, "Cookie: "...)
		default:
			out = append(out, "; "...)
		}
		out = append(out, v...)
	}
}

func appendText(out []byte, name, value string) []byte {
	return append(append(append(append(out, name...), ": "...), value...), "\r\n"...)
}

// appendAll appends everything that is here, passed on or not.
func (q *queue) appendAll(out []byte) []byte {
	for i, p := range q.pieces {
		if i == 0 {
			p = p[q.from:]
		}
		out = append(out, p...)
	}
	return out
}
