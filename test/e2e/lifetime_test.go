package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-mesh/weir/controlplane"
	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy"
)

// TestRunLeavesNothingBehind runs a control plane and two sidecars in this
// process, sends requests in explicit mode, ends them and looks for goroutines
// and descriptors that are left.
func TestRunLeavesNothingBehind(t *testing.T) {
	before := goleak.IgnoreCurrent()
	files := openFiles(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()

	type addrs struct{ http, grpc string }
	ready := make(chan addrs, 1)
	plane := run(func(ctx context.Context) error {
		return controlplane.Run(ctx, controlplane.Config{
			DataDir: dir, HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0", TrustDomain: "weir.local",
			Ready: func(h, g net.Addr) { ready <- addrs{h.String(), g.String()} },
		})
	})
	var at addrs
	select {
	case at = <-ready:
	case err := <-plane.done:
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(dir, controlplane.AdminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	client := &api.Client{BaseURL: "http://" + at.http, Token: strings.TrimSpace(string(token)), HTTP: &http.Client{Transport: transport}}

	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s", r.URL.Path, r.Header.Get("X-Source-Service"))
	}))
	appPort := netip.MustParseAddrPort(app.Listener.Addr().String()).Port()
	users := policy.ServiceName{Namespace: "default", Name: "users"}
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "u1", users.Name, users.Namespace, "127.0.0.1", int(appPort)
	e.HealthCheckPath = "/"
	if err := client.Register(ctx, e); err != nil {
		t.Fatal(err)
	}

	frontPort := freePort(t)
	front := startSidecar(t, ctx, client, at.grpc, "front", frontPort)
	get := func(target string) (string, int, error) {
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://127.0.0.1:"+frontPort+"/hello", nil)
		req.Header.Set("X-Target-Service", target)
		resp, err := client.HTTP.Do(req)
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), resp.StatusCode, err
	}
	for range 20 {
		body, code, err := get("users")
		if err != nil || code != 200 || body != "/hello from front" {
			t.Fatalf("got %d %q, %v", code, body, err)
		}
	}
	if body, code, err := get("nobody"); err != nil || code != 503 || body != `{"error":"No healthy endpoints available"}`+"\n" {
		t.Errorf("a service that is not there: %d %q %v", code, body, err)
	}

	transport.CloseIdleConnections()
	front.stop(t)
	plane.stop(t)
	app.Close()
	goleak.VerifyNone(t, before)
	if now := openFiles(t); now > files {
		t.Errorf("%d descriptors were open before, %d after", files, now)
	}
}

// part is something that runs until it is told to end.
type part struct {
	cancel context.CancelFunc
	done   chan error
}

func run(f func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{cancel, make(chan error, 1)}
	go func() { p.done <- f(ctx) }()
	return p
}

func (p *part) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	select {
	case err := <-p.done:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}

func startSidecar(t *testing.T, ctx context.Context, client *api.Client, control, service, outbound string) *part {
	t.Helper()
	name := policy.ServiceName{Namespace: "default", Name: service}
	token, err := client.CreateToken(ctx, name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	admin := freePort(t)
	p, err := proxy.New(proxy.Config{
		Service: name, Control: []string{control}, TokenFile: file, StateDir: t.TempDir(), Admin: "127.0.0.1:" + admin,
		Outbound: []string{"127.0.0.1:" + outbound}, Inbound: []string{"127.0.0.1:0"}, DNS: []string{"127.0.0.1:0"},
		DrainDelay: time.Millisecond, DrainTimeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := run(p.Run)
	for {
		resp, err := client.HTTP.Get("http://127.0.0.1:" + admin + "/ready")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return s
			}
		}
		select {
		case err := <-s.done:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatal("the sidecar does not become ready")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// freePort is a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
