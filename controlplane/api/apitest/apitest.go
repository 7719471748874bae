// Package apitest keeps a mesh in memory, for tests of what talks to the API.
// It remembers every state whole, where the store remembers differences, and
// leaves serving to the package it is for.
package apitest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// Mesh is a control plane's state in memory. Its methods may be called by many
// goroutines.
type Mesh struct {
	mu      sync.Mutex // guards what follows
	states  []*state   // by revision; the last is what is
	history []policy.Revision
	broken  error
	ids     int
	proxies []api.ProxyStatus
	figures policy.Figures
	tell    func(api.Snapshot, api.Touched)
	checks  []api.HealthResult
	orders  map[policy.Ref]order
}

// state is one state, which does not change.
type state struct {
	revision int64
	order    []policy.Ref
	values   map[policy.Ref]policy.Stored
}

// New gives an empty mesh.
func New() *Mesh {
	return &Mesh{states: []*state{{values: map[policy.Ref]policy.Stored{}}}}
}

// Serve gives the API's server over the mesh and tells it of changes.
func (m *Mesh) Serve(cfg api.Config) (*api.Server, error) {
	cfg.Mesh = m
	s, err := api.New(cfg)
	if err == nil {
		m.mu.Lock()
		m.tell = s.Changed
		m.mu.Unlock()
	}
	return s, err
}

// Break makes every write fail; nil mends it.
func (m *Mesh) Break(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// Connect sets the connected proxies and the sum of their figures.
func (m *Mesh) Connect(figures policy.Figures, proxies ...api.ProxyStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.figures, m.proxies = figures, proxies
}

// Check sets what the health checks found, of every endpoint.
func (m *Mesh) Check(results ...api.HealthResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checks = results
}

// Health implements api.Mesh.
func (m *Mesh) Health(name policy.ServiceName, id string) (api.EndpointHealth, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.last().Endpoints(name) {
		if e.ID == id {
			return api.EndpointHealth{Namespace: name.Namespace, ServiceName: name.Name, ID: id, Status: e.Status, Checked: len(m.checks) > 0, History: m.checks}, true
		}
	}
	return api.EndpointHealth{}, false
}

// Newest is the revision of the state; each write that changes something makes it
// one more.
func (m *Mesh) Newest() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last().revision
}

func (m *Mesh) last() *state { return m.states[len(m.states)-1] }

// Snapshot implements api.Mesh.
func (m *Mesh) Snapshot() api.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last()
}

// Change implements api.Mesh.
func (m *Mesh) Change(_ context.Context, edits []policy.Edit, dryRun bool) (policy.Outcome, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return policy.Outcome{}, m.broken
	}
	next := m.last().clone()
	var out policy.Outcome
	for _, e := range edits {
		if e.ID == "" && e.Kind != policy.KindConfig {
			m.ids++
			e.ID = fmt.Sprintf("r%d", m.ids)
		}
		have := next.values[e.Ref]
		if e.Kind == policy.KindConfig && have.Value == nil {
			set := policy.DefaultSettings()
			have.Value = &policy.Resource{Settings: &set}
		}
		made, err := e.Make(have)
		if err != nil {
			return policy.Outcome{}, err
		}
		made = named(made, e.ID)
		d := policy.Compare(e.Ref, have.Value, made)
		out.Differences = append(out.Differences, d)
		if d.Action != policy.Unchanged || e.Kind == policy.KindEndpoint && !e.Quiet {
			next.put(e.Ref, made)
			out.Revision = next.revision
		}
	}
	if dryRun {
		return policy.Outcome{Differences: out.Differences}, nil
	}
	if out.Revision > 0 {
		m.store(next, policy.Author{Who: policy.ByAdmin}, out.Differences)
	}
	return out, nil
}

// named gives a rule its id.
func named(r *policy.Resource, id string) *policy.Resource {
	if r == nil {
		return nil
	}
	out := *r
	switch {
	case r.Traffic != nil:
		rule := *r.Traffic
		rule.ID, out.Traffic = id, &rule
	case r.Security != nil:
		rule := *r.Security
		rule.ID, out.Security = id, &rule
	}
	return &out
}

func (m *Mesh) store(next *state, by policy.Author, differences []policy.Difference) {
	differences = slices.DeleteFunc(slices.Clone(differences), func(d policy.Difference) bool { return d.Action == policy.Unchanged })
	if len(differences) > 0 {
		m.history = append(m.history, policy.Revision{
			Revision: next.revision, Time: 1_700_000_000 + float64(next.revision), Author: by, Total: len(differences), Changes: differences,
		})
	}
	m.states = append(m.states, next)
	if m.tell == nil {
		return
	}
	t := api.Touched{Security: true, Settings: true}
	for _, d := range differences {
		if name := d.Name(); !name.IsZero() && !slices.Contains(t.Services, name) {
			t.Services = append(t.Services, name)
		}
	}
	m.tell(next, t)
}

func (s *state) clone() *state {
	return &state{revision: s.revision + 1, order: slices.Clone(s.order), values: maps.Clone(s.values)}
}

func (s *state) put(ref policy.Ref, value *policy.Resource) {
	_, known := s.values[ref]
	switch {
	case value == nil:
		delete(s.values, ref)
		s.order = slices.DeleteFunc(s.order, func(r policy.Ref) bool { return r == ref })
		return
	case !known:
		s.order = append(s.order, ref)
	}
	s.values[ref] = policy.Stored{Value: value, Version: s.revision}
}

// History implements api.Mesh.
func (m *Mesh) History(_ context.Context, before int64, limit int) ([]policy.Revision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []policy.Revision
	for _, r := range slices.Backward(m.history) {
		if (before == 0 || r.Revision < before) && len(out) < limit {
			out = append(out, r.Summary())
		}
	}
	return out, nil
}

// Revision implements api.Mesh.
func (m *Mesh) Revision(_ context.Context, revision int64) (policy.Revision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.history {
		if r.Revision == revision {
			return r, nil
		}
	}
	return policy.Revision{}, fmt.Errorf("revision %d: %w", revision, policy.ErrNotFound)
}

func (m *Mesh) at(revision int64) (*state, error) {
	for _, s := range m.states {
		if s.revision == revision {
			return s, nil
		}
	}
	return nil, fmt.Errorf("revision %d: %w", revision, policy.ErrNotFound)
}

// Between implements api.Mesh.
func (m *Mesh) Between(_ context.Context, from, to int64) ([]policy.Difference, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if to == 0 {
		to = m.last().revision
	}
	a, err := m.at(from)
	if err != nil {
		return nil, err
	}
	b, err := m.at(to)
	if err != nil {
		return nil, err
	}
	return differences(a, b), nil
}

func differences(a, b *state) []policy.Difference {
	var out []policy.Difference
	seen := map[policy.Ref]bool{}
	for _, ref := range append(slices.Clone(a.order), b.order...) {
		d := policy.Compare(ref, a.values[ref].Value, b.values[ref].Value)
		if d.Action != policy.Unchanged && !seen[ref] {
			out = append(out, d)
		}
		seen[ref] = true
	}
	return out
}

// Rollback implements api.Mesh.
func (m *Mesh) Rollback(_ context.Context, revision int64, dryRun bool) (policy.Outcome, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was, err := m.at(revision)
	if err != nil {
		return policy.Outcome{}, err
	}
	out := policy.Outcome{Differences: differences(m.last(), was)}
	if dryRun || len(out.Differences) == 0 {
		return out, nil
	}
	next := m.last().clone()
	next.order, next.values = slices.Clone(was.order), map[policy.Ref]policy.Stored{}
	for ref, v := range was.values {
		if have := m.last().values[ref]; have.Value.Same(v.Value) {
			v = have
		} else {
			v.Version = next.revision
		}
		next.values[ref] = v
	}
	m.store(next, policy.Author{Who: policy.ByRollback, Name: fmt.Sprintf("to revision %d", revision)}, out.Differences)
	out.Revision = next.revision
	return out, nil
}

// Touched implements api.Mesh: every proxy that is connected.
func (m *Mesh) Touched([]policy.Difference) []api.ProxyName {
	var out []api.ProxyName
	for _, p := range m.Proxies() {
		out = append(out, api.ProxyName{ID: p.ID, Namespace: p.Namespace, ServiceName: p.ServiceName})
	}
	return out
}

// Proxies implements api.Proxies.
func (m *Mesh) Proxies() []api.ProxyStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.proxies)
}

// Totals implements api.Proxies.
func (m *Mesh) Totals() policy.Figures {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.figures
}

// Revision implements api.Snapshot.
func (s *state) Revision() int64 { return s.revision }

// Services implements api.Snapshot.
func (s *state) Services() []api.ServiceSummary {
	var names []string
	found := map[string]api.ServiceSummary{}
	for _, ref := range s.order {
		if sum, ok := s.Service(ref.Name()); ok {
			names, found[ref.Name().String()] = append(names, ref.Name().String()), sum
		}
	}
	slices.Sort(names)
	var out []api.ServiceSummary
	for _, name := range slices.Compact(names) {
		out = append(out, found[name])
	}
	return out
}

// Service implements api.Snapshot.
func (s *state) Service(name policy.ServiceName) (api.ServiceSummary, bool) {
	if name.IsZero() {
		return api.ServiceSummary{}, false
	}
	sum := api.ServiceSummary{Namespace: name.Namespace, ServiceName: name.Name, VirtualIPv4: "240.240.0.1"}
	for _, e := range s.Endpoints(name) {
		sum.Endpoints++
		if e.Status == policy.Healthy {
			sum.HealthyEndpoints++
		}
	}
	sum.TrafficRules = len(s.TrafficRules(name))
	return sum, sum.Endpoints+sum.TrafficRules > 0
}

// Endpoints implements api.Snapshot.
func (s *state) Endpoints(name policy.ServiceName) []api.EndpointState {
	var out []api.EndpointState
	for _, ref := range s.order {
		if v := s.values[ref]; ref.Name() == name && v.Value.Endpoint != nil {
			out = append(out, api.EndpointState{Endpoint: *v.Value.Endpoint, Version: v.Version})
		}
	}
	return out
}

// TrafficRules implements api.Snapshot.
func (s *state) TrafficRules(name policy.ServiceName) []api.Versioned[policy.TrafficRule] {
	var out []api.Versioned[policy.TrafficRule]
	for _, ref := range s.order {
		if v := s.values[ref]; ref.Name() == name && v.Value.Traffic != nil {
			out = append(out, api.Versioned[policy.TrafficRule]{Value: *v.Value.Traffic, Version: v.Version})
		}
	}
	return out
}

// SecurityRules implements api.Snapshot.
func (s *state) SecurityRules() []api.Versioned[policy.SecurityRule] {
	var out []api.Versioned[policy.SecurityRule]
	for _, ref := range s.order {
		if v := s.values[ref]; v.Value.Security != nil {
			out = append(out, api.Versioned[policy.SecurityRule]{Value: *v.Value.Security, Version: v.Version})
		}
	}
	return out
}

// Settings implements api.Snapshot.
func (s *state) Settings() api.Versioned[policy.Settings] {
	if v, ok := s.values[policy.Ref{Kind: policy.KindConfig}]; ok {
		return api.Versioned[policy.Settings]{Value: *v.Value.Settings, Version: v.Version}
	}
	return api.Versioned[policy.Settings]{Value: policy.DefaultSettings()}
}
