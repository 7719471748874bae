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
		if f := &r.fields[i]; f.Class != fieldHost && f.Name != "te" && f.Name != "content-length" && !x.toUpstream.drops(f.Name) {
			out = appendText(out, f.Name, f.Value)
		}
	}
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
