package h2

import (
	"net/http"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
)

// Response is the head of an upstream's answer as it was received. Its strings are
// valid until Relay, Discard or the next RoundTrip.
type Response struct {
	message
	Status int
	// EndStream says that there is neither body nor trailer section: of gRPC, a call
	// that failed at once ("Trailers-Only"), with grpc-status among the fields.
	EndStream bool
}

func (r *Response) reset() {
	r.message.reset()
	r.Status, r.EndStream = 0, false
}

// ContentLength is that of the head, -1 when it has none.
func (r *Response) ContentLength() int64 { return r.length }

// read checks a head that was decoded.
func (r *Response) read() *refusal {
	err := r.each(func(f *hpack.Field) *refusal {
		if f.Class != pseudoStatus || r.Status != 0 {
			return errPseudo
		}
		if len(f.Value) != 3 || f.Value[0] < '1' || f.Value[0] > '9' {
			return errStatus
		}
		for i := range 3 {
			if f.Value[i] < '0' || f.Value[i] > '9' {
				return errStatus
			}
			r.Status = r.Status*10 + int(f.Value[i]-'0')
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case r.head.Over:
		return errHeadLarge
	case r.Status == 0:
		return errPseudo
	case r.Status == http.StatusSwitchingProtocols: // RFC 9113 section 8.6
		return errStatus
	}
	return nil
}

// bodyless reports whether this response cannot have a body, RFC 9110 section 6.4.1.
func (r *Response) bodyless(method string) bool {
	return method == http.MethodHead || r.Status == http.StatusNoContent || r.Status == http.StatusNotModified
}
