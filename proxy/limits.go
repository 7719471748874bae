package proxy

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/ratelimit"
)

// limit is one rate limit with what it has counted.
type limit struct {
	policy policy.RateLimit
	ref    policy.LimitRef
	text   string             // as the RateLimit-Policy field has it
	whole  *ratelimit.Limiter // of all requests together; nil with a key
	keyed  *ratelimit.Keyed   // by key
	parts  []keyPart
	wants  wants // of a limit of the whole mesh
}

// keyPart is one of the things that a key is made of.
type keyPart struct {
	kind keyKind
	name string // of the header or the claim
}

type keyKind uint8

const (
	keySource keyKind = iota
	keyHeader
	keyClaim
)

// newLimit keeps the counts of the old limit where it is the same.
func newLimit(l policy.RateLimit, service policy.ServiceName, old []*limit, now time.Time) (*limit, error) {
	out := &limit{policy: l, ref: l.Ref(service)}
	for _, o := range old {
		if o.policy == l && o.ref == out.ref {
			return o, nil
		}
	}
	p := ratelimit.Policy{Limit: l.Limit, Window: l.Window, Burst: l.Burst}
	out.text = string(ratelimit.AppendPolicy(nil, l.Title(), p))
	var err error
	if l.Key == "" {
		out.whole, err = ratelimit.New(p, now)
	} else {
		out.parts = keyParts(l.Key)
		out.keyed, err = ratelimit.NewKeyed(p, 0, now)
	}
	if err != nil {
		return nil, fmt.Errorf("rate limit %s: %w", l.Title(), err)
	}
	if l.Mesh {
		out.beginShare(now)
	}
	return out, nil
}

func keyParts(key string) []keyPart {
	var parts []keyPart
	for part := range strings.SplitSeq(key, ",") {
		kind, name, _ := strings.Cut(part, ":")
		switch kind {
		case "source":
			parts = append(parts, keyPart{keySource, ""})
		case "header":
			parts = append(parts, keyPart{keyHeader, name})
		case "jwt":
			parts = append(parts, keyPart{keyClaim, name})
		}
	}
	return parts
}

func (l *limit) ask(key string, now time.Time, spend bool) ratelimit.Decision {
	switch {
	case l.keyed != nil && spend:
		return l.keyed.Allow(key, now)
	case l.keyed != nil:
		return l.keyed.Peek(key, now)
	case spend:
		return l.whole.Allow(now)
	}
	return l.whole.Peek(now)
}

// keyer tells what a request has to count by. The string needs to hold only
// until the next call.
type keyer interface{ keyPart(keyPart) string }

// limitCheck asks the limits of one request. It is reused from request to
// request, so that asking allocates nothing.
type limitCheck struct {
	limits []*limit
	key    []byte
}

// all asks every limit: only when each would let the request pass is it counted.
// It gives the tightest: the one that leaves least, or that refuses longest.
func (c *limitCheck) all(k keyer, now time.Time) (tight *limit, d ratelimit.Decision) {
	if len(c.limits) == 1 {
		l := c.limits[0]
		return l, l.ask(c.keyOf(l, k), now, true)
	}
	for _, l := range c.limits {
		if l.ask(c.keyOf(l, k), now, false).OK {
			continue
		}
		// Refused once more, so that it counts as asked for.
		if got := l.ask(c.keyOf(l, k), now, true); !got.OK && (tight == nil || got.RetryAfter > d.RetryAfter) {
			tight, d = l, got
		}
	}
	if tight != nil {
		return tight, d
	}
	for _, l := range c.limits {
		got := l.ask(c.keyOf(l, k), now, true)
		if !got.OK { // another request took the last place meanwhile
			return l, got
		}
		if tight == nil || got.Remaining < d.Remaining {
			tight, d = l, got
		}
	}
	return tight, d
}

// keyOf makes the key that a limit counts by. Of several parts each ends with a
// zero byte, which no header can hold.
func (c *limitCheck) keyOf(l *limit, k keyer) string {
	switch len(l.parts) {
	case 0:
		return ""
	case 1:
		return k.keyPart(l.parts[0])
	}
	c.key = c.key[:0]
	for _, part := range l.parts {
		c.key = append(append(c.key, k.keyPart(part)...), 0)
	}
	return view(c.key)
}

// limit applies the limits of the service and of the route.
func (o *outbound) limit(x exchange) int {
	if len(o.service.limits)+len(o.dest.routeLimits) == 0 {
		return 0
	}
	c := &o.check
	c.limits = append(c.limits[:0], o.service.limits...)
	if len(o.dest.routeLimits) > 0 {
		if l := o.dest.routeLimits[o.route.Rule]; l != nil {
			c.limits = append(c.limits, l)
		}
	}
	if len(c.limits) == 0 {
		return 0
	}
	l, d := c.all(o, o.began)
	o.text = setLimitFields(x, o.text[:0], l.policy.Title(), l.text, d)
	if d.OK {
		return 0
	}
	o.p.wantsShare(l)
	o.service.metrics.RateLimited()
	return o.reply(x, rateLimited)
}

// keyPart implements keyer: who calls is the receiver's to say.
func (o *outbound) keyPart(part keyPart) string {
	v, _ := o.header(part.name)
	return v
}

// setLimits compiles the service's limits and those of its routes, as far as
// they are counted here.
func (d *destination) setLimits(old *destination, now time.Time) error {
	var known []*limit
	if old != nil {
		known = old.allLimits()
	}
	for _, l := range d.svc.Traffic.Limits() {
		if l.CountedByReceiver() {
			continue
		}
		made, err := newLimit(l, d.svc.Name, known, now)
		if err != nil {
			return err
		}
		d.limits = append(d.limits, made)
	}
	for i := range d.svc.Rules {
		l := d.svc.Rules[i].Limit(0)
		if l.Limit == 0 || l.CountedByReceiver() {
			continue
		}
		made, err := newLimit(l, d.svc.Name, known, now)
		if err != nil {
			return fmt.Errorf("traffic rule %q: %w", l.Rule, err)
		}
		if d.routeLimits == nil {
			d.routeLimits = map[string]*limit{}
		}
		d.routeLimits[l.Rule] = made
	}
	return nil
}

func (d *destination) allLimits() []*limit {
	all := d.limits[:len(d.limits):len(d.limits)]
	for _, l := range d.routeLimits {
		all = append(all, l)
	}
	return all
}

// inboundLimits are the limits that go by who calls.
type inboundLimits struct {
	limits     []*limit
	routes     map[string]*limit
	router     *policy.Router // finds the route; nil without such limits
	needsToken bool           // a claim is counted by, whether a rule demands the token or not
}

func newInboundLimits(in *policy.Inbound, old *inboundLimits, now time.Time) (inboundLimits, error) {
	out := inboundLimits{}
	var known []*limit
	if old != nil {
		known = old.all()
	}
	for _, l := range in.Limits() {
		if !l.CountedByReceiver() {
			continue
		}
		made, err := newLimit(l, in.Service, known, now)
		if err != nil {
			return out, err
		}
		out.limits = append(out.limits, made)
		out.needsToken = out.needsToken || l.NeedsToken()
	}
	for i := range in.Routes {
		l := in.Routes[i].Limit(0)
		if l.Limit == 0 || !l.CountedByReceiver() {
			continue
		}
		made, err := newLimit(l, in.Service, known, now)
		if err != nil {
			return out, fmt.Errorf("traffic rule %q: %w", l.Rule, err)
		}
		if out.routes == nil {
			out.routes = map[string]*limit{}
		}
		out.routes[l.Rule] = made
		out.needsToken = out.needsToken || l.NeedsToken()
	}
	if out.routes == nil {
		return out, nil
	}
	var err error
	out.router, err = policy.NewRouter(&policy.Service{Name: in.Service, Rules: in.Routes})
	return out, err
}

func (i *inboundLimits) all() []*limit {
	all := i.limits[:len(i.limits):len(i.limits)]
	for _, l := range i.routes {
		all = append(all, l)
	}
	return all
}

// limit applies the limits that go by who calls. Of a weighted split the first
// rule is taken for the route: which one the caller's proxy chose is not known
// here.
func (r *inboundRequests) limit(x exchange, g *guard) int {
	if len(g.limits.limits) == 0 && g.limits.router == nil {
		return 0
	}
	c := &r.check
	c.limits = append(c.limits[:0], g.limits.limits...)
	if g.limits.router != nil {
		req := policy.Request{Method: x.Method(), Path: x.Target(), Host: x.Host(), Header: x.Get}
		if l := g.limits.routes[g.limits.router.Route(&req, 0).Rule]; l != nil {
			c.limits = append(c.limits, l)
		}
	}
	if len(c.limits) == 0 {
		return 0
	}
	if g.limits.needsToken {
		// A token that does not hold says nothing: such callers count together.
		_, _ = r.token()
	}
	l, d := c.all(r, r.began)
	r.text = setLimitFields(x, r.text[:0], l.policy.Title(), l.text, d)
	if d.OK {
		return 0
	}
	r.in.p.wantsShare(l)
	r.in.p.ownMetrics().RateLimited()
	return r.reply(x, rateLimited)
}

// keyPart implements keyer.
func (r *inboundRequests) keyPart(part keyPart) string {
	switch part.kind {
	case keySource:
		return source(r.in.caller, r.in.lc.Peer())
	case keyClaim:
		return claimText(r.claims[part.name])
	}
	v, _ := r.hop.Get(part.name)
	return v
}

// claimText is a claim as a key; one that is absent is "".
func claimText(claim any) string {
	switch v := claim.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	b, _ := json.Marshal(claim) // what came as JSON has one
	return string(b)
}
