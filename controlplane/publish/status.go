package publish

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// ProxyStatus is what is known of one connected proxy.
type ProxyStatus struct {
	ID      string
	Service policy.ServiceName
	// Version and Addresses are what the proxy said of itself; empty until it is
	// attached.
	Version   string
	Addresses []netip.Addr
	// Attached and Following tell which of its two streams are open.
	Attached  bool
	Following bool
	// ConnectedAt is when the older of the open streams was opened.
	ConnectedAt time.Time
	// LastSeen is when the proxy last sent anything.
	LastSeen   time.Time
	Figures    policy.Figures
	Report     policy.Report
	ClockSkew  *time.Duration // how far its clock is ahead of ours; nil where it does not tell
	Subscribed int            // resources, all types together
	// Types has one entry for each type the proxy follows, in the order Mesh,
	// Inbound, Service, Lookup.
	Types []TypeStatus
}

// InSync tells whether the proxy has taken all it asked for.
func (p *ProxyStatus) InSync() bool {
	for i := range p.Types {
		if t := &p.Types[i]; t.Pending > 0 || t.Nack != "" {
			return false
		}
	}
	return p.Following
}

// Settled tells whether all proxies have taken, or refused, the services and the
// rules that they follow as they are now.
func (s *Server) Settled() bool {
	for _, p := range s.Proxies() {
		for _, t := range p.Types {
			if t.Pending > 0 && (t.Type == kindNames[kindService] || t.Type == kindNames[kindInbound]) {
				return false
			}
		}
	}
	return true
}

// TypeStatus is what a proxy took of one type of resource.
type TypeStatus struct {
	Type       string // "mesh", "service", "inbound", "lookup"
	Subscribed int
	Pending    int   // resources not yet sent, or sent and not yet acknowledged
	Sent       int64 // the Revision at the last response
	Acked      int64 // the Revision of the last response that was taken
	// Nack is the reason of a refusal that still stands, and Refused the names of
	// what was refused with it; both empty when all was taken.
	Nack    string
	NackAt  time.Time
	Refused []string
}

// ResourceStatus is where one proxy stands with one resource.
type ResourceStatus struct {
	Type  string
	Name  string
	Sent  string // version sent last; "" when the resource does not exist or was not yet sent
	Acked string // version taken last
	Nack  string // why Sent was refused
}

// Proxies lists the connected proxies, by service and id.
func (s *Server) Proxies() []ProxyStatus {
	s.mu.Lock()
	sessions := slices.Collect(maps.Values(s.sessions))
	attachments := slices.Collect(maps.Values(s.attachments))
	s.mu.Unlock()
	all := make(map[proxyKey]*ProxyStatus, len(sessions))
	for _, ses := range sessions {
		ses.describe(statusOf(all, ses.key))
	}
	for _, a := range attachments {
		a.describe(statusOf(all, a.key))
	}
	out := make([]ProxyStatus, 0, len(all))
	for _, p := range all {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		return cmp.Or(cmp.Compare(a.Service.String(), b.Service.String()), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Resources lists what a connected proxy follows, by type and name; nil for a
// proxy that is not known.
func (s *Server) Resources(service policy.ServiceName, id string) []ResourceStatus {
	s.mu.Lock()
	ses := s.sessions[proxyKey{service, id}]
	s.mu.Unlock()
	if ses == nil {
		return nil
	}
	return ses.resources()
}

// Connected counts the proxies that are attached.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.attachments)
}

// Totals sums the figures of the attached proxies. Those of a proxy that left
// are not in it any more, so it can fall.
func (s *Server) Totals() policy.Figures {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum policy.Figures
	for _, a := range s.attachments {
		sum = sum.Add(a.lastFigures())
	}
	return sum
}

func statusOf(all map[proxyKey]*ProxyStatus, key proxyKey) *ProxyStatus {
	p := all[key]
	if p == nil {
		p = &ProxyStatus{ID: key.id, Service: key.service}
		all[key] = p
	}
	return p
}

// opened notes a stream's times.
func (p *ProxyStatus) opened(at, lastSeen time.Time) {
	if p.ConnectedAt.IsZero() || at.Before(p.ConnectedAt) {
		p.ConnectedAt = at
	}
	if lastSeen.After(p.LastSeen) {
		p.LastSeen = lastSeen
	}
}
