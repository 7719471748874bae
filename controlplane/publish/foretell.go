package publish

import (
	"cmp"
	"slices"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// Subscriber is a proxy that follows something.
type Subscriber struct {
	Service policy.ServiceName
	ID      string
}

// Foretell lists the connected proxies that would be sent something if the state
// became another: those that follow what the change names and what differs
// between the two states. It sends nothing. In order of service and id.
func (s *Server) Foretell(c Change, then Source) []Subscriber {
	told := map[Subscriber]struct{}{}
	for t, followers := range s.named(c) {
		now, err1 := read(s.cfg.Source, t.kind, t.name)
		next, err2 := read(then, t.kind, t.name)
		if err1 == nil && err2 == nil && now.version == next.version {
			continue
		}
		for _, f := range followers {
			told[f] = struct{}{}
		}
	}
	out := make([]Subscriber, 0, len(told))
	for f := range told {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Subscriber) int {
		return cmp.Or(cmp.Compare(a.Service.String(), b.Service.String()), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// topicName is a topic's name and kind.
type topicName struct {
	kind kind
	name string
}

// named gives the topics that a change names and who follows them.
func (s *Server) named(c Change) map[topicName][]Subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[topicName][]Subscriber{}
	note := func(k kind, name string) {
		t := s.topics[k][name]
		if t == nil {
			return
		}
		followers := make([]Subscriber, 0, len(t.subscribers))
		for ses := range t.subscribers {
			followers = append(followers, Subscriber{ses.key.service, ses.key.id})
		}
		out[topicName{k, name}] = followers
	}
	if c.Mesh {
		note(kindMesh, wire.MeshName)
	}
	for _, n := range c.Services {
		note(kindService, n.String())
	}
	for _, n := range c.Inbounds {
		note(kindInbound, n.String())
	}
	for _, n := range c.Lookups {
		note(kindLookup, n)
	}
	for k, all := range [kinds]bool{kindService: c.AllServices, kindInbound: c.AllInbounds, kindLookup: c.AllLookups} {
		for name := range s.topics[k] {
			if all {
				note(kind(k), name)
			}
		}
	}
	return out
}
