package main

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weir": main})
}

// Each script runs against the real API over a state in memory. What the
// script's environment holds beside: WEIR_SERVER and WEIR_TOKEN_FILE.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			m := &mesh{endpoints: map[policy.ServiceName][]policy.Endpoint{}, rules: map[policy.ServiceName][]policy.TrafficRule{}, settings: policy.DefaultSettings()}
			h, err := api.New(api.Config{Registry: m, Traffic: m, Security: m, Settings: m, Authority: authority{}, Proxies: m,
				Token: "s3cret", Started: time.Unix(0, 0), Now: func() time.Time { return time.Unix(90, 0) }})
			if err != nil {
				return err
			}
			srv := httptest.NewServer(h)
			e.Defer(srv.Close)
			file := filepath.Join(e.WorkDir, "admin.token")
			e.Setenv("WEIR_SERVER", srv.URL)
			e.Setenv("WEIR_TOKEN_FILE", file)
			return os.WriteFile(file, []byte("s3cret\n"), 0o600)
		},
	})
}

// mesh is a control plane's state in memory.
type mesh struct {
	mu        sync.Mutex // guards what follows
	endpoints map[policy.ServiceName][]policy.Endpoint
	rules     map[policy.ServiceName][]policy.TrafficRule
	security  []policy.SecurityRule
	settings  policy.Settings
	ids       int
}

func (m *mesh) id() string {
	m.ids++
	return fmt.Sprintf("r%d", m.ids)
}

// remove takes out the element that is meant.
func remove[T any](list []T, is func(T) bool) ([]T, error) {
	i := slices.IndexFunc(list, is)
	if i < 0 {
		return list, fmt.Errorf("rule: %w", api.ErrNotFound)
	}
	return slices.Delete(list, i, i+1), nil
}

func (m *mesh) Register(_ context.Context, e policy.Endpoint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.LastSeen = 60
	m.endpoints[e.Service()] = append(m.endpoints[e.Service()], e)
	return nil
}

func (m *mesh) Deregister(_ context.Context, name policy.ServiceName, id string) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints[name], err = remove(m.endpoints[name], func(e policy.Endpoint) bool { return e.ID == id })
	return err
}

func (m *mesh) Endpoints(name policy.ServiceName) []policy.Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.endpoints[name])
}

func (m *mesh) Health(name policy.ServiceName, id string) (api.EndpointHealth, bool) {
	h := api.EndpointHealth{Namespace: name.Namespace, ServiceName: name.Name, ID: id, Status: "unhealthy", Checked: true, Since: 60, NextCheck: 95}
	for i := range 12 {
		h.History = append(h.History, api.HealthResult{At: float64(i), Took: 0.0015, Check: "http", Passed: i < 11, Healthy: i < 11, Detail: fmt.Sprint("answer ", i)})
	}
	return h, true
}

func (m *mesh) Services() []api.ServiceSummary {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.ServiceSummary
	for n, list := range m.endpoints {
		out = append(out, api.ServiceSummary{Namespace: n.Namespace, ServiceName: n.Name, VirtualIPv4: "240.240.0.1",
			Endpoints: len(list), HealthyEndpoints: len(list), TrafficRules: len(m.rules[n])})
	}
	return out
}

func (m *mesh) AddTrafficRule(_ context.Context, name policy.ServiceName, r policy.TrafficRule) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.ID = m.id()
	m.rules[name] = append(m.rules[name], r)
	return r.ID, nil
}

func (m *mesh) DeleteTrafficRule(_ context.Context, name policy.ServiceName, id string) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rules[name], err = remove(m.rules[name], func(r policy.TrafficRule) bool { return r.ID == id })
	return err
}

func (m *mesh) TrafficRules(name policy.ServiceName) []policy.TrafficRule {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.rules[name])
}

func (m *mesh) AddSecurityRule(_ context.Context, r policy.SecurityRule) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.ID = m.id()
	m.security = append(m.security, r)
	return r.ID, nil
}

func (m *mesh) DeleteSecurityRule(_ context.Context, id string) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.security, err = remove(m.security, func(r policy.SecurityRule) bool { return r.ID == id })
	return err
}

func (m *mesh) SecurityRules() []policy.SecurityRule {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.security)
}

func (m *mesh) Settings() policy.Settings {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.settings
}

func (m *mesh) UpdateSettings(_ context.Context, patch []byte) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settings, err = m.settings.Merge(patch)
	return err
}

func (m *mesh) Proxies() []api.ProxyStatus {
	return []api.ProxyStatus{{ID: "p1", Namespace: "default", ServiceName: "web", Version: "v1", Addresses: []string{"10.0.0.1"}, ConnectedAt: 60, Subscribed: 3,
		Resources: []api.ResourceState{{Type: "Service", Version: "7", Refused: "bad rule"}}}}
}

func (m *mesh) Totals() policy.Figures { return policy.Figures{RequestsRouted: 12} }

type authority struct{}

func (authority) RootPEM() []byte { return []byte("ROOT\n") }

func (authority) IssueForCSR(policy.ServiceName, []byte) ([]byte, error) {
	return nil, errors.New("no command issues certificates")
}

func (authority) IssueWithKey(policy.ServiceName) (key, chain []byte, err error) {
	return nil, nil, errors.New("no command issues certificates")
}

func (authority) NewToken(name policy.ServiceName, ttl time.Duration) (string, time.Time, error) {
	return "weir1." + name.String(), time.Unix(0, 0).Add(ttl), nil
}
