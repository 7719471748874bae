// Package e2e tests weir as a black box: its programs, in network namespaces,
// with apps that never heard of it. What a part does by itself is tested beside
// that part.
package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
	"github.com/weir-mesh/weir/test/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// start runs a mesh for one test.
func start(t *testing.T, control ...string) *meshlab.Mesh {
	t.Helper()
	return startWith(t, meshlab.Config{Control: control})
}

func startWith(t *testing.T, cfg meshlab.Config) *meshlab.Mesh {
	t.Helper()
	bin := os.Getenv("WEIR_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	cfg.Bin, cfg.Progress = bin, t.Logf
	cfg.Init = append(cfg.Init, strings.Fields(os.Getenv("WEIR_INIT_FLAGS"))...)
	m, err := meshlab.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			m.Dump(t.Logf)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func join(t *testing.T, m *meshlab.Mesh, w meshlab.Workload) *meshlab.Node {
	t.Helper()
	n, err := m.Bare(w.Host)
	if err == nil {
		err = m.Join(t.Context(), n, w)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func allow(t *testing.T, m *meshlab.Mesh, from, to string) string {
	t.Helper()
	id, err := m.Allow(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// web starts python's http.server, which never heard of a mesh, with files.
func web(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, port string, files map[string]string) *meshlab.Process {
	t.Helper()
	dir := filepath.Join(m.Dir, "www-"+n.Host.Name())
	files["health"] = "ok\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := n.Start(t.Context(), "web-"+n.Host.Name(), atoi(port), "python3", "-m", "http.server", "--directory", dir, port)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func atoi(s string) int {
	n := 0
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}

// curl runs the real one on a node and gives what it printed.
func curl(t *testing.T, n *meshlab.Node, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := n.Output(ctx, "curl", append([]string{"-sS", "--max-time", "15"}, args...)...)
	if err != nil {
		t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
