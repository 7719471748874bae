package proxy

import (
	"strconv"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
)

// affinity is a service's setting of that name made ready: the cookie's name, and
// what follows its value where it is set.
type affinity struct {
	name string
	tail string
}

func newAffinity(a policy.Affinity) *affinity {
	if a.Cookie == "" {
		return nil
	}
	tail := "; Path=" + a.Path
	if a.TTL > 0 {
		tail += "; Max-Age=" + strconv.FormatInt(int64(a.TTL/time.Second), 10)
	}
	return &affinity{name: a.Cookie, tail: tail + "; HttpOnly"}
}

// token is what stands for an endpoint in cookies: the same at every proxy and
// after a restart. It hides nothing worth hiding and proves nothing: who sends
// another chooses another endpoint of the same service.
func token(e *endpoint) uint64 { return balance.HashString(e.id) }

// byToken finds the endpoints of a set by their tokens; of two alike the first.
func byToken(endpoints []*endpoint) map[uint64]*endpoint {
	out := make(map[uint64]*endpoint, len(endpoints))
	for _, e := range endpoints {
		if _, taken := out[token(e)]; !taken {
			out[token(e)] = e
		}
	}
	return out
}

// prefer has the endpoint that the client's cookie names chosen first.
func (o *outbound) prefer(x exchange, pk *pick) {
	a := o.service.affinity
	if a == nil {
		return
	}
	asked, _ := cookie(x, a.name)
	t, ok := parseToken(asked)
	if !ok {
		return
	}
	if e, ok := pk.tokens[t]; ok {
		o.hand.held = e
		o.sel.prefer(e)
	}
}

// stick has the client told which endpoint answers, if it did not ask for it.
func (o *outbound) stick(x exchange, e *endpoint) {
	a := o.service.affinity
	if a == nil || o.hand.held == e {
		return
	}
	b := append(append(o.hand.cookie[:0], a.name...), '=')
	b = strconv.AppendUint(b, token(e), 16)
	o.hand.cookie = append(b, a.tail...)
	x.AddResponse("Set-Cookie", view(o.hand.cookie))
}

// parseToken reads hexadecimal digits. (strconv allocates for what is none, which
// is for clients to send.)
func parseToken(s string) (t uint64, ok bool) {
	if s == "" || len(s) > 16 {
		return 0, false
	}
	for _, c := range []byte(s) {
		digit := strings.IndexByte("0123456789abcdef", c)
		if digit < 0 {
			return 0, false
		}
		t = t<<4 | uint64(digit)
	}
	return t, true
}
