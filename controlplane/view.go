package controlplane

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// view shows the store's state as what proxies need to know, and which of that
// a change of the state touches. It is publish's Source.
type view struct {
	trustDomain string
	bundle      func() []byte
	signingRoot func() string // may be nil

	mu       sync.RWMutex // guards what follows
	state    *store.State
	virtual  map[netip.Addr]policy.ServiceName
	byAddr   map[netip.AddrPort][]policy.ServiceName // whose endpoint it is, in order
	byHost   map[string][]policy.ServiceName         // whose endpoint outside the mesh it is, in order
	byIP     map[netip.Addr][]user                   // who has endpoints there; mostly one, for which a map would be ten times as large
	besides  map[netip.Addr]int                      // addresses with a proxy beside them now
	meshed   map[netip.Addr]bool
	disabled bool         // somewhere mTLS is disabled, or callers without it are denied by name
	before   []*meshModes // whose modes still count beside those of now
	// unlooked are the services that changed, or whose proxies did, since
	// unmarked looked at them.
	unlooked map[policy.ServiceName]struct{}
}

func newView(st *store.State, trustDomain string, bundle func() []byte) *view {
	v := &view{
		trustDomain: trustDomain, bundle: bundle, state: &store.State{Settings: st.Settings},
		virtual: map[netip.Addr]policy.ServiceName{}, byAddr: map[netip.AddrPort][]policy.ServiceName{},
		byIP: map[netip.Addr][]user{}, besides: map[netip.Addr]int{}, meshed: map[netip.Addr]bool{},
		byHost: map[string][]policy.ServiceName{}, unlooked: map[policy.ServiceName]struct{}{},
	}
	v.apply(store.Everything(st))
	v.before = nil
	return v
}

// apply takes a change over and tells which resources it touches.
func (v *view) apply(c store.Change) publish.Change {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.state
	v.state = c.State
	out := publish.Change{Revision: c.State.Revision}
	touched := map[policy.ServiceName]struct{}{}
	lookups := map[string]struct{}{}
	for name := range c.Services {
		touched[name] = struct{}{}
		v.indexLocked(old.Services.Get(name), c.State.Services.Get(name), lookups)
		if limitsInbound(old.Services.Get(name), c.State.Services.Get(name)) {
			out.Inbounds = append(out.Inbounds, name)
		}
	}
	v.besideLocked(old.Proxies, c.State.Proxies, c.Proxies, touched)
	maps.Copy(v.unlooked, touched)
	was := v.disabled
	if c.Security || c.Settings {
		v.disabled = disablesMTLS(c.State)
		v.turnsLocked(old, c.State)
	}
	// Rules that disable mTLS tell callers by their addresses, and tell callers
	// to send plaintext.
	out.AllInbounds = c.Security || c.Settings || v.disabled
	out.AllServices = c.Settings || c.Security && (was || v.disabled)
	out.Mesh = c.Settings || c.Revoked || c.Roots
	out.Services = slices.Collect(maps.Keys(touched))
	out.Lookups = slices.Collect(maps.Keys(lookups))
	return out
}

// foresee gives the view as it would be with differences, and what that touches.
// The view itself stays as it is.
func (v *view) foresee(differences []policy.Difference) (*view, publish.Change) {
	v.mu.RLock()
	next := &view{
		trustDomain: v.trustDomain, bundle: v.bundle, signingRoot: v.signingRoot, state: v.state, virtual: maps.Clone(v.virtual), byAddr: maps.Clone(v.byAddr), byHost: maps.Clone(v.byHost),
		byIP: make(map[netip.Addr][]user, len(v.byIP)), besides: maps.Clone(v.besides), meshed: maps.Clone(v.meshed), disabled: v.disabled,
		unlooked: map[policy.ServiceName]struct{}{},
	}
	for a, users := range v.byIP {
		next.byIP[a] = slices.Clone(users)
	}
	v.mu.RUnlock()
	_, change := next.state.With(differences)
	return next, next.apply(change)
}

// disablesMTLS tells whether callers are told by their addresses anywhere, so that
// what is enforced may change with every endpoint and proxy.
func disablesMTLS(st *store.State) bool {
	plaintext := st.Settings.AnyMode(policy.Permissive, policy.Disabled)
	denies := false
	for i := range st.Security {
		r := &st.Security[i]
		if r.MTLSMode == policy.Disabled {
			return true
		}
		plaintext = plaintext || r.MTLSMode == policy.Permissive
		denies = denies || r.Does() != policy.Allow
	}
	return st.Settings.AnyMode(policy.Disabled) || denies && plaintext
}

// indexLocked takes a service's addresses over, and notes the lookups that this
// touches. It costs what differs between the two; nil is no service. What comes
// goes in first: an address that stays in use is not to count as free between.
func (v *view) indexLocked(old, now *store.Service, lookups map[string]struct{}) {
	if old == nil {
		old = &store.Service{}
	}
	if now == nil {
		now = &store.Service{}
	}
	if old.VirtualIndex != now.VirtualIndex {
		v.virtualLocked(now, true, lookups)
		v.virtualLocked(old, false, lookups)
	}
	v.hostsLocked(old, now, lookups)
	gone, came := moved(old.Endpoints, now.Endpoints)
	for _, at := range came {
		lookups[at.String()] = struct{}{}
		v.ownLocked(at, now.Name, +1)
		v.useLocked(at.Addr(), now.Name, +1)
	}
	if len(gone) == 0 {
		return
	}
	still := make(map[netip.AddrPort]bool, len(now.Endpoints)) // also under another id
	for i := range now.Endpoints {
		still[now.Endpoints[i].Addr()] = true
	}
	for _, at := range gone {
		lookups[at.String()] = struct{}{}
		if !still[at] {
			v.ownLocked(at, old.Name, -1)
		}
		v.useLocked(at.Addr(), old.Name, -1)
	}
}

// moved gives the addresses of the endpoints that are no more, or elsewhere, and
// of those that are new there. Both lists are in order of ids.
func moved(old, now []store.Endpoint) (gone, came []netip.AddrPort) {
	for len(old)+len(now) > 0 {
		switch {
		case len(now) == 0 || len(old) > 0 && old[0].ID < now[0].ID:
			gone, old = append(gone, old[0].Addr()), old[1:]
		case len(old) == 0 || now[0].ID < old[0].ID:
			came, now = append(came, now[0].Addr()), now[1:]
		default:
			if old[0].IP != now[0].IP || old[0].Port != now[0].Port {
				gone, came = append(gone, old[0].Addr()), append(came, now[0].Addr())
			}
			old, now = old[1:], now[1:]
		}
	}
	// Those outside the mesh have no address here.
	outside := func(at netip.AddrPort) bool { return !at.IsValid() }
	return slices.DeleteFunc(gone, outside), slices.DeleteFunc(came, outside)
}

// virtualLocked enters a service's virtual addresses or takes them out, if no
// other service has them by now.
func (v *view) virtualLocked(s *store.Service, enter bool, lookups map[string]struct{}) {
	v4, v6, err := policy.VirtualAddrs(s.VirtualIndex)
	if err != nil {
		return
	}
	for _, a := range []netip.Addr{v4, v6} {
		lookups[a.String()] = struct{}{}
		if enter {
			v.virtual[a] = s.Name
		} else if v.virtual[a] == s.Name {
			delete(v.virtual, a)
		}
	}
}

// user is a service with endpoints at an address.
type user struct {
	name      policy.ServiceName
	endpoints int
}

// useLocked counts a service's endpoints at an address up or down.
func (v *view) useLocked(a netip.Addr, name policy.ServiceName, by int) {
	users := v.byIP[a]
	i := slices.IndexFunc(users, func(u user) bool { return u.name == name })
	if i < 0 {
		i, users = len(users), append(users, user{name: name})
	}
	if users[i].endpoints += by; users[i].endpoints <= 0 {
		users = slices.Delete(users, i, i+1)
	}
	if len(users) > 0 {
		v.byIP[a] = users
	} else {
		delete(v.byIP, a)
	}
	v.settleLocked(a)
}

// ownLocked keeps byAddr in order, so that an address of two services leads to
// the same one everywhere.
func (v *view) ownLocked(at netip.AddrPort, name policy.ServiceName, by int) {
	owners := v.byAddr[at]
	i, found := slices.BinarySearchFunc(owners, name, compareNames)
	switch {
	case by > 0 && !found:
		v.byAddr[at] = slices.Insert(slices.Clone(owners), i, name)
	case by < 0 && found && len(owners) == 1:
		delete(v.byAddr, at)
	case by < 0 && found:
		v.byAddr[at] = slices.Delete(slices.Clone(owners), i, i+1)
	}
}

func compareNames(a, b policy.ServiceName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// besideLocked takes over where proxies are, and notes the services with an
// endpoint where one came or went.
func (v *view) besideLocked(old, now store.Proxies, changed map[string]struct{}, touched map[policy.ServiceName]struct{}) {
	moved := map[netip.Addr]int{}
	count := func(p *store.Proxy, by int) {
		if p == nil {
			return
		}
		for _, a := range p.Addresses {
			moved[a] += by
		}
	}
	for id := range changed {
		count(old.Get(id), -1)
		count(now.Get(id), +1)
	}
	for a, by := range moved {
		if by == 0 {
			continue
		}
		if v.besides[a] += by; v.besides[a] <= 0 {
			delete(v.besides, a)
		}
		for _, u := range v.byIP[a] {
			touched[u.name] = struct{}{}
		}
		v.settleLocked(a)
	}
}

// settleLocked notes whether callers are to use mTLS towards an address. Once a
// proxy was beside it they are, as long as it has endpoints: a proxy that is
// away for a while, or that somebody keeps from the control plane, must not
// make its callers fall back to plaintext.
func (v *view) settleLocked(a netip.Addr) {
	switch {
	case v.besides[a] > 0:
		v.meshed[a] = true
	case len(v.byIP[a]) == 0:
		delete(v.meshed, a)
	}
}

// sourcesLocked are where the sources of a rule are known to be: their endpoints
// and the addresses their proxies are beside, in order.
func (v *view) sourcesLocked(r *policy.SecurityRule) []netip.Addr {
	set := map[netip.Addr]struct{}{}
	services := func(yield func(*store.Service)) {
		for _, s := range v.state.Services.All() {
			if r.IsFrom(s.Name) {
				yield(s)
			}
		}
	}
	if from := r.From(); len(from) == 1 && !strings.Contains(from[0].String(), policy.Any) {
		services = func(yield func(*store.Service)) { // mostly so
			if s := v.state.Services.Get(from[0]); s != nil {
				yield(s)
			}
		}
	}
	services(func(s *store.Service) {
		for i := range s.Endpoints {
			if a := s.Endpoints[i].Addr().Addr(); a.IsValid() {
				set[a] = struct{}{}
			}
		}
	})
	for p := range v.state.Proxies.All() {
		if r.IsFrom(p.Service) {
			for _, a := range p.Addresses {
				set[a] = struct{}{}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(set), netip.Addr.Compare)
}

// Lookup implements publish.Source.
func (v *view) Lookup(resource string) (policy.ServiceName, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if a, err := netip.ParseAddr(resource); err == nil {
		name, ok := v.virtual[a]
		return name, ok
	}
	at, err := netip.ParseAddrPort(resource)
	if err != nil && len(v.byHost[resource]) > 0 {
		return v.byHost[resource][0], true
	}
	if err != nil || len(v.byAddr[at]) == 0 {
		return policy.ServiceName{}, false
	}
	return v.byAddr[at][0], true
}

// targets lists all endpoints for the health checks.
func (v *view) targets() []policy.Target {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := make([]policy.Target, 0, len(v.byAddr)) // about
	for _, s := range v.state.Services.All() {
		for i := range s.Endpoints {
			// What is outside the mesh is not ours to ask for its health.
			if e := &s.Endpoints[i]; e.Host == "" {
				out = append(out, v.targetLocked(e))
			}
		}
	}
	return out
}

// unmarked lists the endpoints that the store is to be told of: they have a
// proxy beside them and outlive it. It costs what has changed since it was
// called last, and what is still to be told.
func (v *view) unmarked() []policy.Target {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []policy.Target
	for name := range v.unlooked {
		known := len(out)
		if s := v.state.Services.Get(name); s != nil {
			for i := range s.Endpoints {
				if e := &s.Endpoints[i]; !e.Leased && !e.Meshed && v.besides[e.Addr().Addr()] > 0 {
					out = append(out, v.targetLocked(e))
				}
			}
		}
		if len(out) == known {
			delete(v.unlooked, name)
		}
	}
	return out
}

func (v *view) settings() policy.Settings {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.state.Settings
}
