// Package detect tells from the first bytes of a connection which protocol it carries.
// What to do with the connection, and what a protocol may do, is left to the caller.
package detect

// MeshALPN is the ALPN protocol by which proxies of the mesh know each other's
// TLS from the application's own.
const MeshALPN = "weir"

// MaxBytes is how much of a connection is looked at. A ClientHello with a
// post-quantum key share is near 2 KiB; what does not fit is not of the mesh.
const MaxBytes = 16 << 10

// Kind is a protocol told from its first bytes.
type Kind uint8

// The protocols that can be told apart.
const (
	Opaque Kind = iota // anything else, or nothing said yet
	HTTP1              // an HTTP/1.x request line
	HTTP2              // the HTTP/2 client preface, whole
	TLS                // a TLS ClientHello record
)

// String is one word, fit for a metric label or a log field.
func (k Kind) String() string {
	switch k {
	case HTTP1:
		return "http1"
	case HTTP2:
		return "http2"
	case TLS:
		return "tls"
	}
	return "opaque"
}

// Outcome is how the answer was come by.
type Outcome uint8

// The ways detection ends.
const (
	// Decided: the bytes were enough.
	Decided Outcome = iota
	// Silent: the client said nothing before the deadline.
	Silent
	// Incomplete: the deadline or a pause passed, Config.Enough said so or the client ended its
	// stream in the middle of something that could have become more.
	Incomplete
	// OtherSpoke: Config.Enough said so before the client said anything.
	OtherSpoke
	// Ended: the client ended its stream without a byte.
	Ended
)

// String is one word, fit for a metric label or a log field.
func (o Outcome) String() string {
	switch o {
	case Silent:
		return "silent"
	case Incomplete:
		return "incomplete"
	case OtherSpoke:
		return "other_spoke"
	case Ended:
		return "ended"
	}
	return "decided"
}

// Result is what detection found.
type Result struct {
	Kind    Kind
	Outcome Outcome
	// Hello is set when Kind is TLS and the ClientHello was whole and well
	// formed. Without it (cut short, over MaxBytes, broken) the TLS is not the
	// mesh's.
	Hello *Hello
}

// Mesh tells whether this is the TLS of another proxy of the mesh.
func (r Result) Mesh() bool { return r.Hello != nil && r.Hello.Mesh }

// Classify tells what b, the beginning of a client's stream, carries. more is
// true while further bytes could change the answer; the answer is then Opaque,
// or TLS without its Hello. The result does not refer to b.
func Classify(b []byte) (r Result, more bool) {
	if len(b) == 0 {
		return Result{}, true
	}
	if b[0] == recordHandshake {
		r, more = classifyTLS(b)
	} else {
		r.Kind, more = classifyHTTP(b)
	}
	return r, more && len(b) < MaxBytes
}
