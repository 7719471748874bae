package proxy

import (
	"encoding/hex"
	"math/rand/v2"
)

// ids are a request's id and trace context. The strings are views of buffers
// that the next request overwrites.
type ids struct {
	request string // X-Request-ID, kept or made
	trace   string // trace id of traceparent, "" when there is none

	requestBuf [36]byte
	parentBuf  [55]byte
}

// begin keeps the X-Request-ID and traceparent that the client sent, or makes
// them: the id always, the trace when tracing is on. The id is also returned.
func (i *ids) begin(x exchange, tracing bool) {
	i.trace = ""
	id, ok := x.Get("X-Request-ID")
	if !ok || id == "" {
		id = i.makeID()
		x.Set("X-Request-ID", id)
	}
	i.request = id
	x.SetResponse("X-Request-ID", id)
	parent, ok := x.Get("traceparent")
	if ok && len(parent) >= 55 {
		i.trace = parent[3:35]
		return
	}
	if b3, ok := x.Get("X-B3-TraceId"); ok {
		i.trace = b3
		return
	}
	if tracing {
		x.Set("traceparent", i.makeParent())
		i.trace = view(i.parentBuf[3:35])
	}
}

// makeID makes a random UUID (RFC 9562 section 5.4). It names a request; it is
// no secret, so the fast generator will do.
func (i *ids) makeID() string {
	var b [16]byte
	putRandom(b[:8])
	putRandom(b[8:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	out := i.requestBuf[:]
	hex.Encode(out[0:8], b[0:4])
	out[8] = '-'
	hex.Encode(out[9:13], b[4:6])
	out[13] = '-'
	hex.Encode(out[14:18], b[6:8])
	out[18] = '-'
	hex.Encode(out[19:23], b[8:10])
	out[23] = '-'
	hex.Encode(out[24:36], b[10:16])
	return view(out)
}

// makeParent makes a traceparent (W3C Trace Context section 3.2), sampled.
func (i *ids) makeParent() string {
	var b [24]byte
	putRandom(b[0:8])
	putRandom(b[8:16])
	putRandom(b[16:24])
	out := i.parentBuf[:]
	copy(out, "00-")
	hex.Encode(out[3:35], b[:16])
	out[35] = '-'
	hex.Encode(out[36:52], b[16:24])
	copy(out[52:], "-01")
	return view(out)
}

func putRandom(b []byte) {
	v := rand.Uint64()
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
}
