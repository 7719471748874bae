package controlplane

import (
	"slices"

	"github.com/weir-mesh/weir/controlplane/shares"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// portionLocked tells how much of a limit is this control plane's to divide: all
// of it while it is alone. With others each has a share of it by what its proxies
// want, worked out like those of the proxies.
func (s *shareOut) portionLocked() shares.Portion {
	own := map[policy.LimitRef]*policy.Demand{}
	totals := s.table.Totals()
	for i := range totals {
		own[totals[i].Limit] = &totals[i]
	}
	others, told := s.othersLocked()
	return func(ref policy.LimitRef, key *uint64) (shares.Limit, bool) {
		l, ok := s.limit(ref)
		if !ok || !l.Mesh {
			return shares.Limit{}, false
		}
		out := shares.Limit{Requests: l.Limit, Window: l.Window, Bucket: l.Burst > 0, Keyed: l.Key != "" && key == nil}
		// What was told of the proxies here is what the others reckon with; before
		// that, what is known.
		mine := told[ref]
		if mine == nil {
			mine = own[ref]
		}
		if mine == nil || len(others[ref]) == 0 {
			return out, true
		}
		if out.Keyed {
			out.Requests = evenPart(l.Limit, own[ref].Keepers, mine.Keepers, others[ref])
			return out, true
		}
		uses := []shares.Use{useOf(mine, key)}
		at := 0 // in the order of the members' names, so that all round the same way
		for _, o := range others[ref] {
			if key != nil && !slices.ContainsFunc(o.demand.Keys, func(k policy.KeyDemand) bool { return k.Key == *key }) {
				continue
			}
			if o.before {
				uses = slices.Insert(uses, at, useOf(o.demand, key))
				at++
			} else {
				uses = append(uses, useOf(o.demand, key))
			}
		}
		out.Requests = shares.Divide(out, uses, demandLasts)[at]
		return out, true
	}
}

// evenPart is a keyed limit as it is to be divided among own proxies so that each
// gets an even part of it among all.
func evenPart(limit, own, told int, others []otherDemand) int {
	all := max(told, own)
	for _, o := range others {
		all += o.demand.Keepers
	}
	return max(limit*max(own, 1)/max(all, 1), 1)
}

func useOf(d *policy.Demand, key *uint64) shares.Use {
	if key == nil {
		return shares.Use{Rate: d.Rate, Used: d.Used}
	}
	for _, k := range d.Keys {
		if k.Key == *key {
			return shares.Use{Rate: k.Rate, Used: k.Used}
		}
	}
	return shares.Use{}
}

// otherDemand is what another control plane's proxies want of a limit.
type otherDemand struct {
	before bool // in the order of members
	demand *policy.Demand
}

// othersLocked gives what the members told, apart from what was told of the
// proxies here.
func (s *shareOut) othersLocked() (others map[policy.LimitRef][]otherDemand, told map[policy.LimitRef]*policy.Demand) {
	others, told = map[policy.LimitRef][]otherDemand{}, map[policy.LimitRef]*policy.Demand{}
	name, since := s.self()
	self := slices.IndexFunc(s.members, func(m store.Member) bool { return m.Name == name && m.Since == since })
	for i := range s.members {
		for j := range s.members[i].Demands {
			d := &s.members[i].Demands[j]
			if i == self {
				told[d.Limit] = d
			} else {
				others[d.Limit] = append(others[d.Limit], otherDemand{before: i < self, demand: d})
			}
		}
	}
	return others, told
}

// meshLimit finds a limit of a service or one of its rules.
func (v *view) meshLimit(ref policy.LimitRef) (policy.RateLimit, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if ref.Rule == "" {
		traffic := v.state.Settings.TrafficFor(ref.Service)
		for _, l := range traffic.Limits() {
			if l.Ref(ref.Service) == ref {
				return l, true
			}
		}
		return policy.RateLimit{}, false
	}
	svc := v.state.Services.Get(ref.Service)
	if svc == nil {
		return policy.RateLimit{}, false
	}
	for i := range svc.Rules {
		if r := &svc.Rules[i]; r.ID == ref.Rule && r.RateLimit != nil {
			return r.Limit(duration(v.state.Settings.Security.RateLimiting.Window)), true
		}
	}
	return policy.RateLimit{}, false
}
