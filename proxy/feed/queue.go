package feed

import (
	"slices"

	"github.com/weir-mesh/weir/policy/wire"
)

// queue is what is to be sent on the discovery stream. Subscriptions that come
// faster than they are sent are sent together. It has no lock.
type queue struct {
	acks  []*wire.DeltaDiscoveryRequest
	wants [kinds]map[string]bool // name → subscribe; false is unsubscribe
}

func newQueue() queue {
	var q queue
	for k := range q.wants {
		q.wants[k] = map[string]bool{}
	}
	return q
}

// subscribe asks for a resource, also for one that an unsubscription on its way
// names: the server answers each name it is asked for.
func (q *queue) subscribe(r resource) { q.wants[r.kind][r.name] = true }

func (q *queue) unsubscribe(r resource) { q.wants[r.kind][r.name] = false }

// take empties the queue into messages, in the order of kinds.
func (q *queue) take() []*wire.DeltaDiscoveryRequest {
	out := q.acks
	for k, wants := range q.wants {
		if len(wants) == 0 {
			continue
		}
		req := &wire.DeltaDiscoveryRequest{TypeUrl: typeURLs[k]}
		for name, want := range wants {
			if want {
				req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
			} else {
				req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
			}
		}
		slices.Sort(req.ResourceNamesSubscribe)
		slices.Sort(req.ResourceNamesUnsubscribe)
		out = append(out, req)
	}
	*q = newQueue()
	return out
}

// first makes the messages that open a stream: everything that is subscribed to,
// with the versions that are in force, so that only what differs is sent. What
// was queued is in them.
func (t *table) first() []*wire.DeltaDiscoveryRequest {
	var out [kinds]*wire.DeltaDiscoveryRequest
	for r, s := range t.all {
		if out[r.kind] == nil {
			out[r.kind] = &wire.DeltaDiscoveryRequest{TypeUrl: typeURLs[r.kind], InitialResourceVersions: map[string]string{}}
		}
		req := out[r.kind]
		req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, r.name)
		if s.version != "" {
			req.InitialResourceVersions[r.name] = s.version
		}
	}
	var reqs []*wire.DeltaDiscoveryRequest
	for _, req := range out {
		// A first message without names would subscribe to everything.
		if req != nil {
			slices.Sort(req.ResourceNamesSubscribe)
			reqs = append(reqs, req)
		}
	}
	return reqs
}
