package main

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/api/apitest"
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
			m := apitest.New()
			m.Connect(policy.Figures{RequestsRouted: 12}, api.ProxyStatus{
				ID: "p1", Namespace: "default", ServiceName: "web", Version: "v1", Addresses: []string{"10.0.0.1"}, ConnectedAt: 60, Subscribed: 3,
				Resources: []api.ResourceState{{Type: "Service", Version: "7", Refused: "bad rule"}, {Type: "Mesh", Version: "9"}},
				State:     api.Refusing, ConnectedTo: "10.0.0.9:8081", MemoryBytes: 9 << 20, CertificateExpires: 4_000_000_000, ClockSkew: new(300.4),
			})
			var checks []api.HealthResult
			for i := range 12 {
				checks = append(checks, api.HealthResult{At: float64(i), Took: 0.0015, Check: "http", Passed: i < 11, Healthy: i < 11, Detail: fmt.Sprint("answer ", i)})
			}
			m.Check(checks...)
			h, err := m.Serve(api.Config{Authority: authority{}, Proxies: m, Trust: &apitest.Trust{}, Token: "s3cret", Started: time.Unix(0, 0), Now: func() time.Time { return time.Unix(90, 0) }})
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

type authority struct{ apitest.Authority }

func (authority) CreateToken(_ context.Context, name policy.ServiceName, ttl time.Duration, uses int) (policy.JoinToken, string, error) {
	return policy.JoinToken{ID: "t1", Service: name, Expires: time.Unix(0, 0).Add(ttl), Uses: uses}, "weir1." + name.String(), nil
}
