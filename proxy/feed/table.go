package feed

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// kind is a type of resource, in the order in which they are asked for.
type kind uint8

const (
	meshKind kind = iota
	inboundKind
	serviceKind
	lookupKind
	kinds
)

const meshName = wire.MeshName

var typeURLs = [kinds]string{wire.MeshType, wire.InboundType, wire.ServiceType, wire.LookupType}

func kindOf(typeURL string) (kind, bool) {
	i := slices.Index(typeURLs[:], typeURL)
	return kind(max(i, 0)), i >= 0
}

// resource names what can be subscribed to.
type resource struct {
	kind kind
	name string
}

// String gives "weir.v1.Service shop/web".
func (r resource) String() string {
	return typeURLs[r.kind][len("type.googleapis.com/"):] + " " + r.name
}

// sub is one subscription.
type sub struct {
	resource
	used     atomic.Int64           // Unix nanoseconds
	answer   atomic.Pointer[answer] // nil until the first
	answered chan struct{}          // closed with the first answer

	// Guarded by Feed.mu.
	until   time.Time // how long callers wait for the first answer
	version string    // of what is in force; "" for nothing
	raw     []byte    // what is in force, encoded; never changed
	virtual [2]netip.Addr
}

// answer is what is known of a resource.
type answer struct {
	known   bool
	service policy.ServiceName // that a lookup found
}

// table holds the subscriptions, with the look-ups that the hot path needs. It
// has no lock.
type table struct {
	all       map[resource]*sub
	services  map[policy.ServiceName]*sub
	addresses map[netip.AddrPort]*sub // port 0: a virtual address
	hosts     map[string]*sub
	virtual   map[netip.Addr]policy.ServiceName
}

// maxSubs bounds services and addresses, each. Beyond it those used longest ago
// are forgotten.
const maxSubs = 8192

func newTable() table {
	return table{
		all: map[resource]*sub{}, services: map[policy.ServiceName]*sub{},
		addresses: map[netip.AddrPort]*sub{}, hosts: map[string]*sub{}, virtual: map[netip.Addr]policy.ServiceName{},
	}
}

func (t *table) add(r resource, now time.Time) *sub {
	s := &sub{resource: r, answered: make(chan struct{})}
	s.used.Store(now.UnixNano())
	t.all[r] = s
	switch r.kind {
	case serviceKind:
		t.services[s.service()] = s
	case lookupKind:
		if at := s.address(); at.Addr().IsValid() {
			t.addresses[at] = s
		} else {
			t.hosts[s.name] = s
		}
	}
	return s
}

func (t *table) remove(s *sub) {
	delete(t.all, s.resource)
	switch s.kind {
	case serviceKind:
		delete(t.services, s.service())
		t.setVirtual(s, [2]netip.Addr{})
	case lookupKind:
		delete(t.addresses, s.address())
		delete(t.hosts, s.name)
	}
}

// setVirtual notes the virtual addresses of a service. An address that another
// service has taken over meanwhile stays that one's.
func (t *table) setVirtual(s *sub, addrs [2]netip.Addr) {
	name := s.service()
	for _, a := range s.virtual {
		if t.virtual[a] == name {
			delete(t.virtual, a)
		}
	}
	s.virtual = addrs
	for _, a := range addrs {
		if policy.IsVirtual(a) {
			t.virtual[a] = name
		}
	}
}

func (t *table) full() bool {
	return len(t.services) > maxSubs || len(t.addresses)+len(t.hosts) > maxSubs
}

// idle lists what to forget: what was not used since before, and, of a table
// that is full, what was used longest ago. While disconnected what is known
// stays, whatever its age: nobody could tell it to us again.
func (t *table) idle(before time.Time, connected bool) []*sub {
	var out []*sub
	for _, k := range []kind{serviceKind, lookupKind} {
		var kept []*sub
		for _, s := range t.all {
			if s.kind != k {
				continue
			}
			a := s.answer.Load()
			if s.used.Load() < before.UnixNano() && (connected || a == nil || !a.known) {
				out = append(out, s)
			} else {
				kept = append(kept, s)
			}
		}
		if len(kept) > maxSubs {
			slices.SortFunc(kept, func(a, b *sub) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
			out = append(out, kept[:len(kept)-maxSubs*7/8]...)
		}
	}
	return out
}

func (s *sub) service() policy.ServiceName {
	n, _ := policy.ParseServiceName(s.name, "")
	return n
}

func (s *sub) address() netip.AddrPort {
	if at, err := netip.ParseAddrPort(s.name); err == nil {
		return at
	}
	a, _ := netip.ParseAddr(s.name)
	return netip.AddrPortFrom(a, 0)
}
