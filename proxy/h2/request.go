package h2

import (
	"iter"
	"strings"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

// request is the head of a request as it was received.
type request struct {
	message
	method, scheme, authority, path string
	protocol                        string // of an extended CONNECT, RFC 8441
	host                            string // of the field
	hosts                           int
	expects                         bool // 100-continue
}

func (r *request) reset() {
	r.message.reset()
	r.method, r.scheme, r.authority, r.path, r.protocol, r.host = "", "", "", "", "", ""
	r.hosts, r.expects = 0, false
}

// read checks a head that was decoded, RFC 9113 sections 8.2 and 8.3.
func (r *request) read() *refusal {
	seen := uint8(0)
	err := r.each(func(f *hpack.Field) *refusal {
		bit := uint8(1) << (f.Class - pseudo)
		if seen&bit != 0 || f.Class == pseudoStatus {
			return errPseudo
		}
		seen |= bit
		switch f.Class {
		case pseudoMethod:
			r.method = f.Value
		case pseudoScheme:
			r.scheme = f.Value
		case pseudoAuthority:
			r.authority = f.Value
		case pseudoPath:
			r.path = f.Value
		case pseudoProtocol:
			r.protocol = f.Value
		}
		return nil
	})
	switch {
	case r.head.Over: // what it says cannot be known, but is well framed
		return errHeadLarge
	case err != nil:
		return err
	case r.method == "CONNECT" && r.protocol == "":
		return errConnect
	case r.protocol != "" && (r.method != "CONNECT" || !isToken(r.protocol)):
		return errPseudo
	}
	const needed = 1<<(pseudoMethod-pseudo) | 1<<(pseudoScheme-pseudo) | 1<<(pseudoPath-pseudo)
	switch {
	case seen&needed != needed:
		return errPseudo
	case !isToken(r.method):
		return errMethod
	case r.scheme != "http" && r.scheme != "https":
		return errScheme
	case !validPath(r.path, r.method):
		return errPath
	}
	return r.readHost()
}

func validPath(path, method string) bool {
	if path == "*" {
		return method == "OPTIONS"
	}
	return path != "" && path[0] == '/' && all(path, targetByte)
}

// readHost finds the authority. There must be one, as HTTP/1.1 has it, and those
// that are given must agree: a rule may look at one and the server at the other.
func (r *request) readHost() *refusal {
	for i := range r.fields {
		switch f := &r.fields[i]; f.Class {
		case fieldHost:
			r.hosts++
			r.host = f.Value
		case fieldExpect:
			r.expects = r.expects || equalFold(f.Value, "100-continue")
		}
	}
	switch {
	case r.hosts > 1:
		return errHost
	case r.authority == "":
		r.authority = r.host
	case r.hosts == 1 && !equalFold(r.host, r.authority):
		return errHost
	}
	if r.authority == "" || !all(r.authority, hostByte) {
		return errHost
	}
	return nil
}

// Method is the request's method; of an extended CONNECT it is GET, by which HTTP/1.1
// asks for the same (RFC 8441 section 5), so that the same rules hold.
func (x *Exchange) Method() string {
	if x.req.protocol != "" {
		return "GET"
	}
	return x.req.method
}

// Protocol is what an extended CONNECT asks for, such as "websocket"; "" for all other
// requests.
func (x *Exchange) Protocol() string { return x.req.protocol }

// Target is the request target: "/a?b", or "*".
func (x *Exchange) Target() string { return x.req.path }

// Path is Target up to the question mark.
func (x *Exchange) Path() string {
	path, _, _ := strings.Cut(x.req.path, "?")
	return path
}

// Host is the :authority, else the Host field; one of them is there.
func (x *Exchange) Host() string { return x.req.authority }

// Scheme is "http" or "https", as the client says.
func (x *Exchange) Scheme() string { return x.req.scheme }

// Get is the value of the first request field of that name, in any case.
func (x *Exchange) Get(name string) (string, bool) { return x.req.Get(name) }

// All are the names and values of the request fields, see Response.All.
func (x *Exchange) All() iter.Seq2[string, string] { return x.req.All() }

// GRPC reports whether the request is a call of gRPC, by its content-type.
func (x *Exchange) GRPC() bool { return x.req.GRPC() }

// ContentLength is that of the request: -1 when it is not known, 0 without a body.
func (x *Exchange) ContentLength() int64 {
	switch {
	case x.req.length >= 0:
		return x.req.length
	case x.client.inEnded && x.client.got == 0:
		return 0
	}
	return -1
}
