package proxy

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/h1"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/telemetry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// maxMirrored is how many copies may be under way on one loop. A service that
// cannot take them then loses copies; whoever called the first never waits. The
// price of one is its text, 64 KiB and the head at most.
const maxMirrored = 64

// mirrorLimit bounds a copy and its answer where the rule's requests have no
// timeout.
const mirrorLimit = 30 * time.Second

// mirrorHeader marks copies, so that the service can tell them from requests.
// (Envoy appends -shadow to the host in its place, which leads away from the
// virtual host that is to be tried.)
const mirrorHeader = "X-Weir-Mirror"

// mirrored is one copy on its way.
type mirrored struct {
	p       *Proxy
	l       *loop.Loop
	shard   int
	to      *policy.MirrorPlan
	port    uint16
	method  string
	text    []byte
	limit   time.Duration
	metrics *telemetry.Service // of the service that was called
}

var mirroreds = sync.Pool{New: func() any { return &mirrored{} }}

// mirror sends a copy of the request to the service that the rule names, and
// comes back at once. One whose body is not whole yet is copied after the answer;
// one to switch protocols is not: there would be nobody to speak the new one.
func (o *outbound) mirror(x hop) {
	if _, asks := x.Get("Upgrade"); asks || x.upgrades() {
		return
	}
	if o.hand.copyLast = !x.Whole(); o.hand.copyLast {
		x.KeepBody()
		return
	}
	shard := o.lc.Shard()
	if o.p.mirrors[shard] >= maxMirrored {
		o.service.metrics.Mirrored("crowded")
		return
	}
	// An endpoint without a proxy beside it is to be told, as by identify.
	x.Set("X-Source-Service", o.p.cfg.Service.Name)
	x.Set("X-Source-Namespace", o.p.cfg.Service.Namespace)
	m := mirroreds.Get().(*mirrored)
	text, ok := x.AppendCopy(m.text[:0], mirrorHeader, "1")
	if !ok {
		mirroreds.Put(m)
		o.service.metrics.Mirrored("too_large")
		return
	}
	*m = mirrored{
		p: o.p, l: o.l, shard: shard, to: o.route.Plan.Mirror, port: o.lc.OriginalDst().Port(),
		method: strings.Clone(x.Method()), text: text, limit: o.route.Timeout, metrics: o.service.metrics,
	}
	o.p.mirrors[shard]++
	o.l.Go(m.run)
}

// mirrorLate sends the copy of a request whose body was not whole before.
func (o *outbound) mirrorLate(x hop) {
	if !o.hand.copyLast {
		return
	}
	if o.mirror(x); o.hand.copyLast { // it was answered before all of it had come
		o.service.metrics.Mirrored("too_large")
	}
}

// run is the copy's task.
func (m *mirrored) run() {
	defer m.end()
	outcome := "sent"
	if err := m.send(); err != nil {
		outcome = "failed"
		m.p.log.Debug("mirror", zap.Stringer("service", m.to.Service), zap.Error(err))
	}
	m.metrics.Mirrored(outcome)
}

// end makes room for another copy, also after a panic.
func (m *mirrored) end() {
	m.p.mirrors[m.shard]--
	*m = mirrored{text: m.text[:0]}
	mirroreds.Put(m)
}

// send chooses an endpoint as for a request, but leaves no trace of it: what
// becomes of a copy is not to open a circuit or use up a limit.
func (m *mirrored) send() error {
	d := m.p.destination(m.l, m.to.Service)
	if d == nil {
		return errNoEndpoints
	}
	pk := d.choose(m.to.Subset, m.port)
	if pk == nil {
		return errNoEndpoints
	}
	sel := selections.Get().(*selection)
	defer selections.Put(sel)
	sel.now, sel.ignore, sel.counted = m.l.Now(), false, false
	sel.begin(pk)
	e, ticket, ok := sel.take(rand.Uint64(), rand.Uint64())
	if !ok {
		return errCircuitOpen
	}
	defer (&attempt{e: e, ticket: ticket}).cancel()
	return m.sendTo(d, e)
}

func (m *mirrored) sendTo(d *destination, e *endpoint) error {
	limit := m.limit
	if limit <= 0 {
		limit = mirrorLimit
	}
	deadline := m.l.Now().Add(limit)
	for range maxStale {
		up := e.kept[m.shard].h1.Get(m.l.Now())
		if up == nil {
			c, err := m.p.dialFor(m.l, d, e, translate.HTTP1, deadline) // whatever the request was
			if err != nil {
				return err
			}
			up = h1.NewUpstream(c)
		}
		_, err := m.p.h1.Tell(up, m.text, m.method, deadline)
		if err == nil {
			e.kept[m.shard].h1.Put(m.l.Now(), up) // which closes what cannot be used again
			return nil
		}
		var he *h1.Error
		if !errors.As(err, &he) || !he.Stale() || he.Sent {
			return err
		}
	}
	return errNoEndpoints
}
