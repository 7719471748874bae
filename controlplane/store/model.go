package store

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// proxyRecord is a proxy as stored, with the ids of the endpoints it attached.
type proxyRecord struct {
	Namespace string       `json:"namespace"`
	Service   string       `json:"service"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Version   string       `json:"version,omitempty"`
	Control   string       `json:"control,omitempty"`
	Since     float64      `json:"since,omitempty"`
	Endpoints []string     `json:"endpoints,omitempty"`
}

// model is what etcd holds, key by key, from which States are made. It has no
// lock, clock or socket: it takes keys and values and gives States.
type model struct {
	keys keys
	log  *zap.Logger

	services map[policy.ServiceName]*serviceModel
	security map[string]ordered[policy.SecurityRule]
	settings policy.Settings // without those of the file
	setRev   int64           // etcd's modification revision of the settings; 0 for the defaults
	file     *File
	fileRev  int64 // the same of the file; 0 for none
	proxies  map[string]storedProxy
	revoked  map[string]policy.Revocation
	roots    policy.Roots

	// What of the last State is still good.
	last    State
	touched Change
}

type serviceModel struct {
	name       policy.ServiceName
	virtual    int
	virtualRev int64 // etcd's modification revision of the virtual key
	endpoints  map[string]storedEndpoint
	rules      map[string]ordered[policy.TrafficRule]
	circuits   map[string]CircuitOrder // nil until there is one
	revision   int64
}

type storedEndpoint struct {
	Endpoint
	lease int64
}

type storedProxy struct {
	Proxy
	lease int64
}

// ordered is a rule with its place: rules are evaluated in that order.
type ordered[T any] struct {
	place
	revision int64 // etcd's at its last change
	value    T
}

func newModel(k keys, log *zap.Logger) *model {
	return &model{
		keys: k, log: log, services: map[policy.ServiceName]*serviceModel{},
		security: map[string]ordered[policy.SecurityRule]{}, settings: policy.DefaultSettings(),
		proxies: map[string]storedProxy{}, revoked: map[string]policy.Revocation{},
		last: State{Security: []policy.SecurityRule{}, Settings: policy.DefaultSettings()},
	}
}

func (m *model) service(name policy.ServiceName) *serviceModel {
	s := m.services[name]
	if s == nil {
		name = policy.ServiceName{Namespace: strings.Clone(name.Namespace), Name: strings.Clone(name.Name)} // else it keeps a whole key
		s = &serviceModel{name: name, endpoints: map[string]storedEndpoint{}, rules: map[string]ordered[policy.TrafficRule]{}}
		m.services[name] = s
	}
	return s
}

// put takes a key's new value. One that cannot be read was not written by us:
// it is logged and passed over, so that one bad key does not stop the mesh.
func (m *model) put(kv *mvccpb.KeyValue) {
	what, name, id := m.keys.parse(string(kv.Key))
	err := m.putParsed(what, name, id, kv)
	if what == unknownKey || err != nil {
		m.log.Error("a key in etcd cannot be read and is passed over", zap.ByteString("key", kv.Key), zap.Error(err))
		return
	}
	m.touch(what, name, id, kv.ModRevision)
}

func (m *model) putParsed(what kind, name policy.ServiceName, id string, kv *mvccpb.KeyValue) (err error) {
	switch what {
	case virtualKey:
		var index int
		if index, err = decode[int](kv); err == nil {
			s := m.service(name)
			s.virtual, s.virtualRev = index, kv.ModRevision
		}
	case endpointKey:
		var r endpointRecord
		if r, err = decode[endpointRecord](kv); err == nil {
			svc := m.service(name)
			e := Endpoint{Endpoint: r.Endpoint, Leased: kv.Lease != 0, ProxyID: r.ProxyID, Meshed: r.Meshed, File: r.File, Revision: kv.ModRevision}
			e.shareStrings(svc.name)
			svc.shareLabels(&e)
			if id == e.ID {
				id = e.ID // the other is a part of the key, and would keep it
			}
			svc.endpoints[id] = storedEndpoint{Endpoint: e, lease: kv.Lease}
		}
	case ruleKey:
		var r trafficRecord
		if r, err = decode[trafficRecord](kv); err == nil {
			m.service(name).rules[id] = ordered[policy.TrafficRule]{r.at(kv), kv.ModRevision, r.TrafficRule}
		}
	case circuitKey:
		var r circuitRecord
		if r, err = decode[circuitRecord](kv); err == nil {
			m.service(name).order(id, CircuitOrder{policy.CircuitOrder{State: r.State, Number: kv.ModRevision}, r.Until})
		}
	case securityKey:
		var r securityRecord
		if r, err = decode[securityRecord](kv); err == nil {
			m.security[id] = ordered[policy.SecurityRule]{r.at(kv), kv.ModRevision, r.SecurityRule}
		}
	case settingsKey:
		var set policy.Settings
		if set, err = readSettings(kv.Value); err == nil {
			m.settings, m.setRev = set, kv.ModRevision
		}
	case fileKey:
		var f File
		if f, err = decode[File](kv); err == nil {
			m.file, m.fileRev = &f, kv.ModRevision
		}
	case proxyKey:
		var r proxyRecord
		if r, err = decode[proxyRecord](kv); err == nil {
			p := Proxy{ID: id, Service: policy.ServiceName{Namespace: r.Namespace, Name: r.Service}, Addresses: r.Addresses, Version: r.Version, Control: r.Control, Since: r.Since}
			m.proxies[id] = storedProxy{Proxy: p, lease: kv.Lease}
		}
	case revokedKey:
		var r revocationRecord
		if r, err = decode[revocationRecord](kv); err == nil {
			m.revoked[id], err = r.revocation(id)
		}
	case rootsKey:
		var r policy.Roots
		if r, err = decode[policy.Roots](kv); err == nil {
			m.roots, m.roots.Revision = r, kv.ModRevision
		}
	}
	return err
}

// shareStrings lets an endpoint use strings that are there already: with a
// hundred thousand endpoints their own copies would be a tenth of the memory.
func (e *Endpoint) shareStrings(name policy.ServiceName) {
	share(&e.Namespace, name.Namespace)
	share(&e.ServiceName, name.Name)
	share(&e.Protocol, policy.Protocols...)
	share(&e.Status, policy.Healthy, policy.Unhealthy)
	share(&e.HealthCheckPath, "/health")
}

// shareLabels lets an endpoint use the labels of another of its service, if one
// of a few has the same: mostly they are of one version or two.
func (s *serviceModel) shareLabels(e *Endpoint) {
	tries := 4
	for _, other := range s.endpoints {
		if maps.Equal(other.Labels, e.Labels) {
			e.Labels = other.Labels
			return
		}
		if tries--; tries == 0 {
			return
		}
	}
}

func share(s *string, with ...string) {
	for _, w := range with {
		if *s == w {
			*s = w
			return
		}
	}
}

func decode[T any](kv *mvccpb.KeyValue) (T, error) {
	var v T
	err := json.Unmarshal(kv.Value, &v)
	return v, err
}

// remove takes the end of a key at a revision.
func (m *model) remove(key string, revision int64) {
	what, name, id := m.keys.parse(key)
	switch what {
	case virtualKey:
		s := m.service(name)
		s.virtual, s.virtualRev = 0, 0
	case endpointKey:
		delete(m.service(name).endpoints, id)
	case ruleKey:
		delete(m.service(name).rules, id)
	case circuitKey:
		delete(m.service(name).circuits, id)
	case securityKey:
		delete(m.security, id)
	case settingsKey:
		m.settings, m.setRev = policy.DefaultSettings(), 0
	case fileKey:
		m.file, m.fileRev = nil, 0
	case proxyKey:
		delete(m.proxies, id)
	case revokedKey:
		delete(m.revoked, id)
	case rootsKey:
		m.roots = policy.Roots{}
	}
	m.touch(what, name, id, revision)
}

func (m *model) touch(what kind, name policy.ServiceName, id string, revision int64) {
	c := Change{}
	switch what {
	case virtualKey, endpointKey, ruleKey, circuitKey:
		c.Services = map[policy.ServiceName]struct{}{name: {}}
		s := m.services[name]
		s.revision = max(s.revision, revision)
	case securityKey:
		c.Security = true
	case settingsKey, fileKey:
		c.Settings = true
	case proxyKey:
		c.Proxies = map[string]struct{}{id: {}}
	case revokedKey:
		c.Revoked = true
	case rootsKey:
		c.Roots = true
	}
	m.touched.add(&c)
}

// holds tells whether a lease still holds a proxy or one of these endpoints.
func (m *model) holds(lease int64, proxy Proxy, endpoints []string) bool {
	if m.proxies[proxy.ID].lease == lease {
		return true
	}
	svc := m.services[proxy.Service]
	return svc != nil && slices.ContainsFunc(endpoints, func(id string) bool { return svc.endpoints[id].lease == lease })
}

// state makes the State at a revision and tells how it differs from the last.
// What did not change is shared with it.
func (m *model) state(revision int64) (*State, Change) {
	c := m.touched
	m.touched = Change{}
	m.last.Revision = revision
	if len(c.Services) > 0 {
		e := m.last.Services.draft()
		for name := range c.Services {
			if svc := m.services[name].build(name); svc != nil {
				e.put(svc)
			} else {
				e.remove(serviceName(name))
			}
		}
		m.last.Services = Services{e.table}
	}
	if c.Security {
		m.last.Security, m.last.SecurityRevisions = inOrder(m.security)
	}
	if c.Settings {
		m.last.Settings, m.last.File = m.inForce(), m.file
		m.last.SettingsRevision = max(m.setRev, m.fileRev)
	}
	if len(c.Proxies) > 0 {
		e := m.last.Proxies.draft()
		for id := range c.Proxies {
			if p, ok := m.proxies[id]; ok {
				e.put(&p.Proxy)
			} else {
				e.remove(proxyID(id))
			}
		}
		m.last.Proxies = Proxies{e.table}
	}
	if c.Revoked {
		m.last.Revoked = nil
		for _, id := range slices.Sorted(maps.Keys(m.revoked)) {
			m.last.Revoked = append(m.last.Revoked, m.revoked[id])
		}
	}
	if c.Roots {
		m.last.Roots = m.roots
	}
	out := m.last
	return &out, c
}

// after lets a model that was read as a whole follow on another: what is equal
// is shared and counts as unchanged.
func (m *model) after(old *model, revision int64) {
	now, _ := m.state(revision)
	m.last = old.last
	m.touched = Change{Services: map[policy.ServiceName]struct{}{}}
	for name, svc := range now.Services.All() {
		was := old.last.Services.Get(name)
		if was != nil {
			svc.Revision = was.Revision // what follows compares the rest
		}
		if !reflect.DeepEqual(svc, was) {
			m.touched.Services[name] = struct{}{}
		}
		if was != nil { // a key that went leaves no revision behind
			m.services[name].revision = revision
		}
	}
	for name := range old.last.Services.All() {
		if now.Services.Get(name) == nil {
			m.touched.Services[name] = struct{}{}
			m.service(name)
		}
	}
	m.touched.Security = !slices.Equal(now.SecurityRevisions, old.last.SecurityRevisions) || !reflect.DeepEqual(now.Security, old.last.Security)
	m.touched.Settings = now.SettingsRevision != old.last.SettingsRevision || !reflect.DeepEqual(now.Settings, old.last.Settings) || !reflect.DeepEqual(now.File, old.last.File)
	m.touched.Revoked = !slices.Equal(now.Revoked, old.last.Revoked)
	m.touched.Roots = now.Roots.Revision != old.last.Roots.Revision
	m.touched.Proxies = map[string]struct{}{}
	for p := range now.Proxies.All() {
		if !reflect.DeepEqual(p, old.last.Proxies.Get(p.ID)) {
			m.touched.Proxies[p.ID] = struct{}{}
		}
	}
	for p := range old.last.Proxies.All() {
		if now.Proxies.Get(p.ID) == nil {
			m.touched.Proxies[p.ID] = struct{}{}
		}
	}
}

// inForce lays the file's settings over the others. Both were checked together
// when they were stored.
func (m *model) inForce() policy.Settings {
	merged, err := m.file.over(&m.settings)
	if err != nil {
		m.log.Error("the settings of the mesh file do not go with the others and are passed over", zap.Error(err))
		return m.settings
	}
	return *merged
}

// build gives nil for a service that has nothing but its virtual address.
func (s *serviceModel) build(name policy.ServiceName) *Service {
	if s.empty() {
		return nil
	}
	out := &Service{Name: name, VirtualIndex: s.virtual, Revision: s.revision}
	out.Rules, out.RuleRevisions = inOrder(s.rules)
	if len(s.circuits) > 0 {
		out.Circuits = maps.Clone(s.circuits)
	}
	for _, id := range slices.Sorted(maps.Keys(s.endpoints)) {
		out.Endpoints = append(out.Endpoints, s.endpoints[id].Endpoint)
	}
	return out
}

func (s *serviceModel) order(id string, o CircuitOrder) {
	if s.circuits == nil {
		s.circuits = map[string]CircuitOrder{}
	}
	s.circuits[id] = o
}

func (s *serviceModel) empty() bool { return len(s.endpoints) == 0 && len(s.rules) == 0 }

func inOrder[T any](rules map[string]ordered[T]) (values []T, revisions []int64) {
	ids := slices.SortedFunc(maps.Keys(rules), func(a, b string) int {
		return cmp.Or(rules[a].compare(rules[b].place), cmp.Compare(a, b))
	})
	values, revisions = make([]T, 0, len(ids)), make([]int64, 0, len(ids))
	for _, id := range ids {
		values, revisions = append(values, rules[id].value), append(revisions, rules[id].revision)
	}
	return values, revisions
}

// readSettings lays stored settings over the defaults, so that a setting which
// a later version adds has its default.
func readSettings(value []byte) (policy.Settings, error) {
	set := policy.DefaultSettings()
	if len(value) == 0 {
		return set, nil
	}
	err := json.Unmarshal(value, &set)
	return set, err
}
