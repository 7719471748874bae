package api_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "s3cret-admin-token"

// mesh is a control plane's state in memory.
type mesh struct {
	mu        sync.Mutex // guards what follows
	endpoints map[policy.ServiceName][]policy.Endpoint
	traffic   map[policy.ServiceName][]policy.TrafficRule
	security  []policy.SecurityRule
	settings  policy.Settings
	proxies   []api.ProxyStatus
	figures   policy.Figures
	writes    int
	ids       int
	checks    []api.HealthResult
	broken    error // what every write fails with
}

func newMesh() *mesh {
	return &mesh{
		endpoints: map[policy.ServiceName][]policy.Endpoint{},
		traffic:   map[policy.ServiceName][]policy.TrafficRule{},
		settings:  policy.DefaultSettings(),
	}
}

func (m *mesh) write(f func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	m.writes++
	return f()
}

func (m *mesh) stored() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes
}

func (m *mesh) newID() string {
	m.ids++
	return fmt.Sprintf("r%d", m.ids)
}

func (m *mesh) Register(_ context.Context, e policy.Endpoint) error {
	return m.write(func() error {
		e.LastSeen = 1700000000.5
		list := slices.DeleteFunc(m.endpoints[e.Service()], func(o policy.Endpoint) bool { return o.ID == e.ID })
		m.endpoints[e.Service()] = append(list, e)
		return nil
	})
}

func (m *mesh) Deregister(_ context.Context, name policy.ServiceName, id string) error {
	return m.write(func() error {
		before := len(m.endpoints[name])
		m.endpoints[name] = slices.DeleteFunc(m.endpoints[name], func(o policy.Endpoint) bool { return o.ID == id })
		if len(m.endpoints[name]) == before {
			return fmt.Errorf("endpoint %s: %w", id, api.ErrNotFound)
		}
		return nil
	})
}

func (m *mesh) Endpoints(name policy.ServiceName) []policy.Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.endpoints[name])
}

func (m *mesh) Health(name policy.ServiceName, id string) (api.EndpointHealth, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.endpoints[name] {
		if e.ID == id {
			return api.EndpointHealth{Namespace: name.Namespace, ServiceName: name.Name, ID: id, Status: e.Status, Checked: len(m.checks) > 0, History: m.checks}, true
		}
	}
	return api.EndpointHealth{}, false
}

func (m *mesh) Services() []api.ServiceSummary {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[policy.ServiceName]*api.ServiceSummary{}
	at := func(n policy.ServiceName) *api.ServiceSummary {
		if found[n] == nil {
			found[n] = &api.ServiceSummary{Namespace: n.Namespace, ServiceName: n.Name, VirtualIPv4: "240.240.0.1"}
		}
		return found[n]
	}
	for n, list := range m.endpoints {
		for _, e := range list {
			at(n).Endpoints++
			if e.Status == policy.Healthy {
				at(n).HealthyEndpoints++
			}
		}
	}
	for n, list := range m.traffic {
		at(n).TrafficRules += len(list)
	}
	var out []api.ServiceSummary
	for _, s := range found {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b api.ServiceSummary) int {
		return strings.Compare(a.Service().String(), b.Service().String())
	})
	return out
}

func (m *mesh) AddTrafficRule(_ context.Context, name policy.ServiceName, r policy.TrafficRule) (id string, err error) {
	err = m.write(func() error {
		id = m.newID()
		r.ID = id
		m.traffic[name] = append(m.traffic[name], r)
		return nil
	})
	return id, err
}

func (m *mesh) DeleteTrafficRule(_ context.Context, name policy.ServiceName, id string) error {
	return m.write(func() error {
		before := len(m.traffic[name])
		m.traffic[name] = slices.DeleteFunc(m.traffic[name], func(r policy.TrafficRule) bool { return r.ID == id })
		if len(m.traffic[name]) == before {
			return fmt.Errorf("traffic rule %s: %w", id, api.ErrNotFound)
		}
		return nil
	})
}

func (m *mesh) TrafficRules(name policy.ServiceName) []policy.TrafficRule {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.traffic[name])
}

func (m *mesh) AddSecurityRule(_ context.Context, r policy.SecurityRule) (id string, err error) {
	err = m.write(func() error {
		id = m.newID()
		r.ID = id
		m.security = append(m.security, r)
		return nil
	})
	return id, err
}

func (m *mesh) DeleteSecurityRule(_ context.Context, id string) error {
	return m.write(func() error {
		before := len(m.security)
		m.security = slices.DeleteFunc(m.security, func(r policy.SecurityRule) bool { return r.ID == id })
		if len(m.security) == before {
			return fmt.Errorf("security rule %s: %w", id, api.ErrNotFound)
		}
		return nil
	})
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

func (m *mesh) UpdateSettings(_ context.Context, patch []byte) error {
	return m.write(func() error {
		next, err := m.settings.Merge(patch)
		if err != nil {
			return err
		}
		m.settings = next
		return nil
	})
}

func (m *mesh) Proxies() []api.ProxyStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.proxies)
}

func (m *mesh) Totals() policy.Figures {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.figures
}

// authority gives out texts that tell how it was asked.
type authority struct{}

func (authority) RootPEM() []byte { return []byte("ROOT\n") }

func (authority) IssueForCSR(name policy.ServiceName, csr []byte) ([]byte, error) {
	block, _ := pem.Decode(csr)
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("the signing request cannot be read")
	}
	return []byte("CHAIN " + name.String() + " for " + req.PublicKeyAlgorithm.String()), nil
}

func (authority) IssueWithKey(name policy.ServiceName) (key, chain []byte, err error) {
	return []byte("KEY"), []byte("CHAIN " + name.String()), nil
}

func (authority) NewToken(name policy.ServiceName, ttl time.Duration) (string, time.Time, error) {
	if ttl == 0 {
		ttl = 24 * time.Hour
	}
	return "weir1." + name.String(), time.Unix(1_700_000_000, 0).Add(ttl), nil
}

func config(m *mesh) api.Config {
	started := time.Unix(1_700_000_000, 0)
	return api.Config{
		Registry: m, Traffic: m, Security: m, Settings: m, Authority: authority{}, Proxies: m,
		Token: token, Started: started, Now: func() time.Time { return started.Add(90 * time.Second) },
	}
}

// serve gives a client of a control plane with the state m.
func serve(t testing.TB, m *mesh, change ...func(*api.Config)) *api.Client {
	t.Helper()
	cfg := config(m)
	for _, f := range change {
		f(&cfg)
	}
	h, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		srv.Close()
	})
	return &api.Client{BaseURL: srv.URL, Token: token, HTTP: srv.Client()}
}

// answer is what came back for one raw request.
type answer struct {
	status int
	header http.Header
	body   string
}

// send makes one request, with the token, and headers "Name: value" besides.
func send(t testing.TB, c *api.Client, method, path, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, c.BaseURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Del(name)
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, strings.TrimSuffix(string(b), "\n")}
}

// slowRules takes a minute for each rule that is added.
type slowRules struct{ *mesh }

func (s slowRules) AddTrafficRule(ctx context.Context, name policy.ServiceName, r policy.TrafficRule) (string, error) {
	select {
	case <-time.After(time.Minute):
		return s.mesh.AddTrafficRule(ctx, name, r)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
