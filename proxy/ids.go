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
// them: the id always, the trace when tracing is on. The id is also returned. What
// is no id, or stands there twice, gives way: it goes to the log and to other services.
func (i *ids) begin(x exchange, tracing bool) {
	i.trace = ""
	id, twice := x.Get("X-Request-ID")
	if twice {
		_, twice = x.Nth("X-Request-ID", 1)
	}
	if twice || !isRequestID(id) {
		id = i.makeID()
		x.Set("X-Request-ID", id)
	}
	i.request = id
	x.SetResponse("X-Request-ID", id)
	parent, has := x.Get("traceparent")
	if isParent(parent) {
		i.trace = parent[3:35]
		return
	}
	if b3, _ := x.Get("X-B3-TraceId"); (len(b3) == 16 || len(b3) == 32) && isHex(b3) {
		i.trace = b3
		return
	}
	if !tracing {
		return
	}
	if has { // the state is of the trace that is not there, W3C Trace Context section 4.3
		x.Del(traceState...)
	}
	x.Set("traceparent", i.makeParent())
	i.trace = view(i.parentBuf[3:35])
}

var traceState = []string{"tracestate"}

// maxRequestID bounds the ids that clients choose, in bytes.
const maxRequestID = 128

func isRequestID(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != "" && len(s) <= maxRequestID
}

// isParent reports whether s is a traceparent, W3C Trace Context section 3.2. What
// later versions add behind a dash is theirs.
func isParent(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || !isHex(s[:2]) || s[:2] == "ff" || !isHex(s[53:55]) {
		return false
	}
	if len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return false
	}
	return isHex(s[3:35]) && s[3:35] != noTrace && isHex(s[36:52]) && s[36:52] != noTrace[:16]
}

const noTrace = "00000000000000000000000000000000"

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
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
