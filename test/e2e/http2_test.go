package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// h2Mesh is a frontend in front of gRPC's own interop servers and of nginx in
// HTTP/2, each beside a sidecar (two hops, mTLS) and without one (one hop).
type h2Mesh struct {
	*meshlab.Mesh
	front  *meshlab.Node
	meshed []*meshlab.Node
	client string // gRPC's interop client
}

// interopPrograms builds gRPC's interop client and server as they are released: the
// module of their own keeps what they need out of ours.
func interopPrograms(t *testing.T, dir string) (client, server string) {
	t.Helper()
	const of = "google.golang.org/grpc/interop/"
	cmd := exec.CommandContext(t.Context(), "go", "build", "-C", "../interop", "-o", dir+"/", of+"client", of+"server")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "client"), filepath.Join(dir, "server")
}

func newH2Mesh(t *testing.T) *h2Mesh {
	dir := t.TempDir()
	client, server := interopPrograms(t, dir)
	m := &h2Mesh{Mesh: start(t), client: client}
	for _, n := range []struct {
		name   string
		meshed bool
	}{{"meshed", true}, {"plain", false}} {
		for i := range 3 {
			host := n.name + strconv.Itoa(i)
			node := bare(t, m.Mesh, host)
			if _, err := node.Start(t.Context(), "interop-"+host, 10000, server, "-port", "10000"); err != nil {
				t.Fatal(err)
			}
			nginx(t, m.Mesh, node, 8000, fmt.Sprintf(`server { listen 8000 http2; location / { add_header Who %s; return 200 "hello\n"; } }`, host))
			if n.meshed {
				m.meshed = append(m.meshed, node)
				enter(t, m.Mesh, node, meshlab.Workload{Host: host, Service: n.name, Ports: []string{"10000/grpc", "8000/http2"}})
				continue
			}
			register(t, m.Mesh, node, n.name, host+"-grpc", 10000, "grpc")
			register(t, m.Mesh, node, n.name, host+"-web", 8000, "http2")
		}
	}
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "meshed")); err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"meshed", "plain"} {
		await(t, m.Mesh, service, func() error {
			out, err := m.front.Output(t.Context(), "curl", "-sS", "--http2-prior-knowledge", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://"+service+":8000/")
			if err != nil || out != "200" {
				return fmt.Errorf("%s %w", out, err)
			}
			return nil
		})
	}
	return m
}

func TestHTTP2AndGRPC(t *testing.T) {
	t.Parallel()
	m := newH2Mesh(t)
	for _, service := range []string{"meshed", "plain"} {
		t.Run(service, func(t *testing.T) {
			t.Run("gRPC'sOwnInteropCases", func(t *testing.T) { interopCases(t, m, service) })
			t.Run("OneConnectionIsBalancedByRequest", func(t *testing.T) { balancedByRequest(t, m, service) })
			t.Run("LoadOverManyStreams", func(t *testing.T) { manyStreams(t, m, service) })
			if service == "meshed" {
				t.Run("ADrainLosesNoRequest", func(t *testing.T) { drained(t, m) })
			}
			t.Run("AnAuthorityThatNamesAServiceLeadsThere", func(t *testing.T) { authorityLeads(t, m, service) })
			t.Run("HTTP1ReachesHTTP2", func(t *testing.T) { http1ToHTTP2(t, m, service) })
		})
	}
}

// interopCases are those of gRPC's interop client but for those that need a cloud's
// credentials, and three (pick_first_unary and ORCA's) that fail in the same way
// without weir: this server does not answer them.
func interopCases(t *testing.T, m *h2Mesh, service string) {
	var wg sync.WaitGroup // at once: each asks the DNS for what nobody can tell, for seconds
	for _, name := range []string{
		"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
		"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
		"unimplemented_method", "unimplemented_service",
	} {
		wg.Go(func() {
			ask := func() (string, error) {
				return m.front.Output(t.Context(), "timeout", "30", m.client, "-server_host", service, "-server_port", "10000", "-use_tls=false", "-test_case", name)
			}
			out, err := ask()
			// Its client cancels, ends its stream all the same and wants to have read
			// no answer: whichever comes first, which on a busy machine is the answer.
			for n := 0; n < 3 && err != nil && name == "cancel_after_begin" && strings.Contains(err.Error()+out, "got error code 0, want 1"); n++ {
				out, err = ask()
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		})
	}
	wg.Wait()
}

func balancedByRequest(t *testing.T, m *h2Mesh, service string) {
	set(t, m.Mesh, `{"services": {"`+service+`": {"strategy": "round_robin"}}}`)
	url := "http://" + service + ":8000/"
	await(t, m.Mesh, "round robin over one connection", func() error {
		// One program, one connection, one request after the other by its weights.
		out, err := m.front.Output(t.Context(), "nghttp", "-nv", "-t", "10", url+"?1", url+"?2", url+"?3")
		if err != nil {
			return err
		}
		if n := strings.Count(out, "] Connected"); n != 1 {
			t.Fatalf("%d connections: %s", n, out)
		}
		for i := range 3 {
			if strings.Count(out, fmt.Sprintf("who: %s%d", service, i)) != 1 {
				return fmt.Errorf("not in turn: %s", out)
			}
		}
		return nil
	})
}

func manyStreams(t *testing.T, m *h2Mesh, service string) {
	out := output(t, m.front, "h2load", "-n", "3000", "-c", "4", "-m", "50", "http://"+service+":8000/")
	if !strings.Contains(out, "3000 succeeded, 0 failed, 0 errored, 0 timeout") {
		t.Error(out)
	}
}

// authorityLeads calls an address of nobody's by the name of a service.
func authorityLeads(t *testing.T, m *h2Mesh, service string) {
	out := output(t, m.front, "nghttp", "-v", "-t", "10", "-H", ":authority: "+service, "http://"+m.Host.Join(8000)+"/")
	if !strings.Contains(out, "hello") || !strings.Contains(out, "who: "+service) {
		t.Error(out)
	}
}

// drained restarts sidecars under load: connections end by GOAWAY, requests do not.
func drained(t *testing.T, m *h2Mesh) {
	type result struct {
		out string
		err error
	}
	got := make(chan result, 1)
	go func() {
		out, err := m.front.Output(t.Context(), "h2load", "-D", "7", "-c", "2", "-m", "10", "--rps", "200", "http://meshed:8000/")
		got <- result{out, err}
	}()
	for _, n := range m.meshed[:2] {
		if err := n.Proxy.Stop(15 * time.Second); err != nil {
			t.Error(err)
		}
		if err := n.StartProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-got:
		t.Fatal("the load had ended before")
	default:
	}
	r := <-got
	if r.err != nil || !strings.Contains(r.out, " 0 failed, 0 errored, 0 timeout") || strings.Contains(r.out, " 0 succeeded") {
		t.Errorf("%s %v", r.out, r.err)
	}
}

func http1ToHTTP2(t *testing.T, m *h2Mesh, service string) {
	out := output(t, m.front, "curl", "-sS", "--http1.1", "-i", "http://"+service+":8000/")
	if !strings.HasPrefix(out, "HTTP/1.1 200") || !strings.Contains(out, "hello") {
		t.Error(out)
	}
}
