package api_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/api/apitest"
	"github.com/weir-mesh/weir/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "s3cret-admin-token"

// mesh is a control plane's state in memory.
type mesh struct{ *apitest.Mesh }

func newMesh() *mesh { return &mesh{apitest.New()} }

// stored counts the writes.
func (m *mesh) stored() int { return int(m.Newest()) }

func (m *mesh) TrafficRules(name policy.ServiceName) (out []policy.TrafficRule) {
	for _, r := range m.Snapshot().TrafficRules(name) {
		out = append(out, r.Value)
	}
	return out
}

func (m *mesh) SecurityRules() (out []policy.SecurityRule) {
	for _, r := range m.Snapshot().SecurityRules() {
		out = append(out, r.Value)
	}
	return out
}

// authority gives out texts that tell how it was asked.
type authority struct{ apitest.Authority }

func (authority) IssueForCSR(name policy.ServiceName, csr []byte) ([]byte, error) {
	block, _ := pem.Decode(csr)
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errors.New("the signing request cannot be read")
	}
	return []byte("CHAIN " + name.String() + " for " + req.PublicKeyAlgorithm.String()), nil
}

func config(m *mesh) api.Config {
	started := time.Unix(1_700_000_000, 0)
	return api.Config{
		Mesh: m, Authority: authority{}, Proxies: m, Trust: &apitest.Trust{},
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
	h, err := m.Serve(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close()
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

// slow takes a minute for each write.
type slow struct{ *mesh }

func (s slow) Change(ctx context.Context, edits []policy.Edit, dryRun bool) (policy.Outcome, error) {
	select {
	case <-time.After(time.Minute):
		return s.mesh.Change(ctx, edits, dryRun)
	case <-ctx.Done():
		return policy.Outcome{}, ctx.Err()
	}
}
