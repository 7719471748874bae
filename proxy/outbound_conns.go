package proxy

import (
	"sync"
	"time"

	"github.com/weir-mesh/weir/proxy/detect"
	"github.com/weir-mesh/weir/proxy/listen"
	"github.com/weir-mesh/weir/proxy/relay"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// newcomer is a connection to a service whose first bytes are awaited. It is used
// for one connection after another: what is bound in it would be garbage for each,
// among what is kept of the connections.
type newcomer struct {
	p        *Proxy
	lc       *listen.Conn
	dest     *destination
	protocol string

	enough func() bool
	then   func(detect.Result, []byte, error)
}

var newcomers sync.Pool

func (n *newcomer) draining() bool { return n.lc.Listener().Draining() }

// spoke goes on with the connection.
func (n *newcomer) spoke(found detect.Result, peeked []byte, err error) {
	p, lc, d, protocol := n.p, n.lc, n.dest, n.protocol
	n.p, n.lc, n.dest = nil, nil, nil
	newcomers.Put(n)
	if len(peeked) == 0 && lc.Listener().Draining() {
		_ = lc.Close() // nothing was detected: it was woken to end
		return
	}
	p.metrics.Detected(outcomeWord(found))
	if err != nil || len(peeked) == 0 {
		_ = lc.Close()
		return
	}
	p.serveAs(carriageOf(protocol, true, found), &lc.Conn, peeked, lc, d)
}

// outboundRelay is a connection of the app whose bytes are not looked at. It is all
// that is kept of one, beside its two sockets.
type outboundRelay struct {
	session  relay.Session
	p        *Proxy
	lc       *listen.Conn
	dest     *destination  // nil where it passes untouched
	endpoint *endpoint     // the same
	started  time.Duration // the loop's age
}

// Relayed counts and logs the end.
func (r *outboundRelay) Relayed(res relay.Result) {
	if r.dest == nil {
		at := r.lc.OriginalDst().String()
		r.end(r.p.conns.passThrough, at, at, res)
		return
	}
	r.endpoint.stats.Cancel()
	r.end(r.p.conns.outboundTCP, r.dest.label, r.endpoint.at, res)
}

func (r *outboundRelay) end(m *telemetry.Connections, to, at string, res relay.Result) {
	m.Closed(res.Reason.String(), res.ToUpstream, res.ToClient)
	r.p.logOutbound(r.lc, to, at, res.Reason.String(), r.lc.Loop().At(r.started), res)
}
