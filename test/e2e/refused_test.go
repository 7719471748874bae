package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

func TestAPortInUseIsNamed(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := join(t, m, meshlab.Workload{Host: "one", Service: "one"})
	token, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "one"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	weirProxy := []string{m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", "one", "--token-file", file}
	weir := []string{m.Program("weir"), "control", "--data-dir", filepath.Join(t.TempDir(), "data")}
	for _, c := range []struct {
		node *meshlab.Node
		args []string
		want string
	}{
		{n, weirProxy, "127.0.0.1:15001"},
		{n, append(weirProxy, "--outbound-port", "25001"), ":15006"},
		{n, append(weirProxy, "--outbound-port", "25001", "--inbound-port", "25006"), "127.0.0.1:15053"},
		{n, append(weirProxy, "--outbound-port", "25001", "--inbound-port", "25006", "--dns-port", "25053"), "127.0.0.1:15000"},
	} {
		_, err := c.node.Output(ctx, c.args[0], c.args[1:]...)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("%v: %v, want one that names %s", c.args, err, c.want)
		}
	}
	for _, c := range []struct {
		more []string
		want string
	}{
		{[]string{"--http-addr", "127.0.0.1:8080", "--grpc-addr", "127.0.0.1:0"}, "--http-addr"},
		{[]string{"--http-addr", "127.0.0.1:0", "--grpc-addr", m.ControlAddr()}, "--grpc-addr"},
	} {
		out, err := m.Command(ctx, m.Host, weir[0], append(weir[1:], c.more...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) || !strings.Contains(string(out), "address already in use") || err.Error() != "exit status 1" {
			t.Errorf("%v: %v %s", c.more, err, out)
		}
	}
}

func TestADataDirectoryInUseIsRefused(t *testing.T) {
	t.Parallel()
	m := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dir := filepath.Dir(m.TokenFile())
	out, err := m.Command(ctx, m.Host, m.Program("weir"), "control", "--data-dir", dir, "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0").CombinedOutput()
	if err == nil || err.Error() != "exit status 1" || !strings.Contains(string(out), dir) || !strings.Contains(string(out), "use") {
		t.Errorf("a second control plane on one directory: %v %s", err, out)
	}
	if _, err := m.API.Status(ctx); err != nil {
		t.Errorf("the first: %v", err)
	}
}

func TestAFullDiskRefusesWritesAndReadsGoOn(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "full")
	dir := filepath.Join(m.Dir, "full")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `mount -t tmpfs -o size=176m tmpfs "$0" && exec "$@"`
	p, err := n.Start(t.Context(), "control-full", 8080, "sh", "-c", script, dir, m.Program("weir"), "control", "--data-dir", dir, "--http-addr", "127.0.0.1:8080", "--grpc-addr", n.Join(8081))
	if err != nil {
		t.Fatal(err)
	}
	// The mount is in the program's own namespace, and seen through /proc.
	inside := func(name string) string { return fmt.Sprintf("/proc/%d/root%s/%s", p.Pid(), dir, name) }
	token, err := os.ReadFile(inside("admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	c := &api.Client{
		BaseURL: "http://127.0.0.1:8080", Token: strings.TrimSpace(string(token)),
		HTTP: &http.Client{Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}, Timeout: 15 * time.Second},
	}
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "a", "users", "default", "192.0.2.1", 80
	if err := c.Register(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(inside("filler"))
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	e.ID = "b"
	var refused *api.Error
	if err := c.Register(t.Context(), e); !errors.As(err, &refused) || refused.Status != 503 || !strings.Contains(refused.Message, "disk") || !strings.Contains(refused.Message, dir) {
		t.Errorf("a write on a full disk: %v", err)
	}
	if _, err := c.UpdateSettings(t.Context(), map[string]any{"egress": "deny"}); !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("settings on a full disk: %v", err)
	}
	eps, err := c.Endpoints(t.Context(), usersService)
	if err != nil || len(eps) != 1 || eps[0].ID != "a" {
		t.Errorf("reading gives %+v, %v", eps, err)
	}
	select {
	case <-p.Done():
		t.Fatalf("it ended: %v\n%s", p.Err(), p.Tail())
	default:
	}
	if err := os.Remove(inside("filler")); err != nil {
		t.Fatal(err)
	}
	if err := c.Register(t.Context(), e); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}
