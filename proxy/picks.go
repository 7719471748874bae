package proxy

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
)

// pickKey is what narrows a choice of endpoint. An empty subset, port 0 and
// http false do not narrow.
type pickKey struct {
	subset string
	port   uint16
	http   bool // only those declared so
}

// choice is a set to choose from, and what its indexes stand for.
type choice struct {
	set       *balance.Set // nil where it is not to be chosen from
	endpoints []*endpoint
}

// pick is what one choice of endpoint may fall on, in the order of what comes
// first: settle.go says when what does.
type pick struct {
	choice           // those that are healthy
	near, far choice // the same, in this proxy's zone and in others; without sets where zones do not matter
	all       choice // and the unhealthy too; without a set where there is no panic threshold
	members   []member
	tokens    map[uint64]*endpoint // by token, with affinity only

	leaving atomic.Uint32 // of 2^32: the share of requests that leaves the zone
	panics  atomic.Bool   // too few are usable: all are
}

// member is an endpoint as a service has it now.
type member struct {
	*endpoint
	weight int
	zone   string
	sick   bool // unhealthy
}

// builder makes a service's picks.
type builder struct {
	cfg    balance.Config
	zone   string // of this proxy; "" where zones do not matter
	panic  bool   // there is a panic threshold
	sticky bool   // there is affinity
}

func (p *Proxy) builder(svc *policy.Service) builder {
	b := &svc.Traffic.Balancing
	out := builder{panic: b.Panic > 0, sticky: svc.Traffic.Affinity.Cookie != "", cfg: balance.Config{
		Strategy: balance.Strategy(svc.Traffic.Strategy), LoadFactor: b.LoadFactor, SlowStart: b.SlowStart, Aggression: b.Aggression,
	}}
	if b.PreferZone {
		out.zone = p.cfg.Labels[policy.ZoneLabel]
	}
	return out
}

// setPicks makes a pick for each subset and port that an endpoint has.
func (d *destination) setPicks(b builder, members []member, targets []policy.Target) error {
	of := map[pickKey][]member{}
	for i, m := range members {
		t := &targets[i]
		for _, subset := range subsetsOf(t) {
			keys := []pickKey{{subset: subset}, {subset: subset, port: uint16(t.Port)}}
			if t.Protocol == "http" {
				keys = append(keys, pickKey{subset: subset, http: true})
			}
			for _, key := range keys {
				of[key] = append(of[key], m)
			}
		}
	}
	d.picks = make(map[pickKey]*pick, len(of))
	for key, ms := range of {
		// Mostly all endpoints of a subset are on one port: one pick is for both then.
		if whole := (pickKey{subset: key.subset}); len(ms) == len(of[whole]) {
			key = whole
		}
		if d.picks[key] != nil {
			continue
		}
		pk, err := b.pick(ms)
		if err != nil {
			return err
		}
		d.picks[key] = pk
	}
	for key, ms := range of {
		if whole := (pickKey{subset: key.subset}); len(ms) == len(of[whole]) {
			d.picks[key] = d.picks[whole]
		}
	}
	return nil
}

func (b *builder) pick(ms []member) (*pick, error) {
	pk := &pick{members: ms}
	var near, far, healthy []member
	for _, m := range ms {
		switch {
		case m.sick:
			continue
		case m.zone == b.zone:
			near = append(near, m)
		default:
			far = append(far, m)
		}
		healthy = append(healthy, m)
	}
	pk.endpoints = endpointsOf(healthy)
	if b.sticky {
		pk.tokens = byToken(pk.endpoints)
	}
	var err error
	build := func(c *choice, ms []member) {
		if err == nil {
			c.endpoints = endpointsOf(ms)
			c.set, err = b.set(ms)
		}
	}
	if b.zone != "" && len(near) > 0 && len(far) > 0 {
		build(&pk.near, near)
		build(&pk.far, far)
	} else {
		build(&pk.choice, healthy)
	}
	if b.panic {
		build(&pk.all, ms)
	}
	return pk, err
}

func (b *builder) set(ms []member) (*balance.Set, error) {
	candidates := make([]balance.Endpoint, len(ms))
	for i, m := range ms {
		candidates[i] = balance.Endpoint{ID: m.id, Weight: m.weight, Stats: m.stats}
	}
	return balance.Build(b.cfg, candidates)
}

func endpointsOf(ms []member) []*endpoint {
	out := make([]*endpoint, len(ms))
	for i, m := range ms {
		out[i] = m.endpoint
	}
	return out
}

// subsetsOf lists the subsets an endpoint is in: "" and the values of its
// labels version and subset.
func subsetsOf(t *policy.Target) []string {
	out := []string{""}
	for _, label := range []string{"version", "subset"} {
		if v := t.Labels[label]; v != "" && v != out[len(out)-1] {
			out = append(out, v)
		}
	}
	return out
}

// choose gives the pick for a subset: of the endpoints that listen on the port
// the app dialled. If no endpoint of the service is meant to, healthy or not,
// then of those that serve HTTP, or if none does of all. nil when there is none.
func (d *destination) choose(subset string, port uint16) *pick {
	if d.ports[port] {
		return d.picks[pickKey{subset: subset, port: port}]
	}
	if pk := d.picks[pickKey{subset: subset, http: true}]; pk != nil {
		return pk
	}
	return d.picks[pickKey{subset: subset}]
}

// distinct lists a service's picks, each once.
func (d *destination) distinct() []*pick {
	seen := make(map[*pick]bool, len(d.picks))
	for _, pk := range d.picks {
		seen[pk] = true
	}
	return slices.Collect(maps.Keys(seen))
}

// protocolFor is what is declared for connections to a port of the service.
func (d *destination) protocolFor(port uint16) string {
	if pk := d.choose("", port); pk != nil {
		return pk.members[0].protocol
	}
	for i := range d.svc.Endpoints { // none is healthy: what one would speak
		if t := &d.svc.Endpoints[i]; t.Port == int(port) || !d.ports[port] {
			return t.Protocol
		}
	}
	return "http"
}
