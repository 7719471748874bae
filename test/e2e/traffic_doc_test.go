package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// shopMesh is the mesh of docs/TRAFFIC.md: a frontend, a service "shop" of two
// versions and a service "shop-next", each an nginx that never heard of a mesh.
type shopMesh struct {
	*meshlab.Mesh
	front    *meshlab.Node
	next     *app
	revision string // without any rule of the document
}

// shopServer is what the nginx of one version answers. Of what is different in
// each the document says so.
const shopServer = `server {
  listen 8080; server_name _; keepalive_requests 1000000;
  location / { return 200 "shop %[1]s: $request_method $request_uri Host $http_host\n"; }
  location = /tenant { return 200 "tenant $http_x_tenant$http_cookie\n"; }
  location = /time-left { return 200 "time left: $http_weir_timeout_ms\n"; }
  location = /late { add_header Retry-After 3600 always; return 503; }
  location = /busy-v1 { %[2]s return 200 "shop %[1]s: GET $request_uri Host $http_host\n"; }
  location = /hang-v1 { %[3]s return 200 "shop %[1]s: GET $request_uri Host $http_host\n"; }
  location = /hang { proxy_pass http://127.0.0.1:9000; }
  location = /pause { proxy_pass http://127.0.0.1:9000; proxy_buffering off; }
}`

func newShopMesh(t *testing.T) *shopMesh {
	m := &shopMesh{Mesh: start(t)}
	for _, version := range []string{"v1", "v2"} {
		n := bare(t, m.Mesh, "shop-"+version)
		busy, hang := "", ""
		if version == "v1" {
			busy, hang = "return 429;", "proxy_pass http://127.0.0.1:9000; break;"
		}
		serve(t, n, "slow", 9000, slowly(t))
		nginx(t, m.Mesh, n, 8080, fmt.Sprintf(shopServer, version, busy, hang))
		enter(t, m.Mesh, n, meshlab.Workload{Host: "shop-" + version, Service: "shop", Ports: []string{"8080"}, Labels: []string{"version=" + version}})
	}
	next := bare(t, m.Mesh, "shop-next")
	m.next = serve(t, next, "shop-next", 8080, nil)
	enter(t, m.Mesh, next, meshlab.Workload{Host: "shop-next", Service: "shop-next", Ports: []string{"8080"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	for _, service := range []string{"shop", "shop-next"} {
		if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", service)); err != nil {
			t.Fatal(err)
		}
		await(t, m.Mesh, service, func() error {
			if a := ask(t, m.front, "http://"+service+"/"); a.Status != 200 {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			return nil
		})
	}
	await(t, m.Mesh, "both versions", func() error {
		s, err := m.front.Status(t.Context())
		if err == nil && len(s.Services["default/shop"].Endpoints) != 2 {
			err = fmt.Errorf("%d endpoints", len(s.Services["default/shop"].Endpoints))
		}
		return err
	})
	m.revision = strings.Fields(strings.Split(operate(t, m.Mesh, "history", "--limit", "1"), "\n")[1])[0]
	return m
}

// slowly answers late: never, or with a pause in the body.
func slowly(t *testing.T) http.HandlerFunc {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/pause" {
			_, _ = io.WriteString(w, "it begins\n")
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}
}

// example is one block of documents, and the commands and outputs that follow it.
type example struct {
	documents string
	steps     []step
}

var block = regexp.MustCompile("(?ms)^```(yaml|sh|text)\n(.*?)^```$")

// examples gives the examples of a section, in their order. An output without a
// command is what weir validate says of the documents.
func examples(body string) (all []example) {
	for _, m := range block.FindAllStringSubmatch(body, -1) {
		switch {
		case m[1] == "yaml":
			all = append(all, example{documents: m[2]})
		case len(all) == 0:
		case m[1] == "sh":
			last := &all[len(all)-1]
			last.steps = append(last.steps, step{commands: m[2]})
		default:
			last := &all[len(all)-1]
			if len(last.steps) == 0 {
				last.steps = append(last.steps, step{})
			}
			s := &last.steps[len(last.steps)-1]
			s.output = append(s.output, strings.Split(strings.TrimSpace(m[2]), "\n")...)
		}
	}
	return all
}

func TestTrafficRulesDoWhatTheirDocumentSays(t *testing.T) {
	t.Parallel()
	m := newShopMesh(t)
	sections := strings.Split(readDocument(t, "docs/TRAFFIC.md"), "\n## ")[1:]
	if len(sections) < 10 {
		t.Fatalf("docs/TRAFFIC.md has %d sections", len(sections))
	}
	for _, text := range sections {
		heading, body, _ := strings.Cut(text, "\n")
		t.Run(strings.ReplaceAll(heading, " ", ""), func(t *testing.T) {
			all := examples(body)
			if len(all) == 0 {
				t.Fatal("there is no example")
			}
			for _, e := range all {
				m.follow(t, e)
			}
		})
	}
	m.next.mu.Lock()
	defer m.next.mu.Unlock()
	copied := m.next.seen[len(m.next.seen)-1]
	if h := copied.Header; copied.Target != "/cart" || copied.Host != "shop" || h.Get("X-Weir-Mirror") != "1" || h.Get("X-Source-Service") != "frontend" {
		t.Errorf("what shop-next got last is %+v", copied)
	}
}

// follow applies an example and tries its commands until they print what it
// says: when a rule is in force at the caller's proxy is not told otherwise.
func (m *shopMesh) follow(t *testing.T, e example) {
	t.Helper()
	if len(e.steps) == 0 {
		t.Fatalf("nothing shows what this does:\n%s", e.documents)
	}
	if e.steps[0].commands == "" {
		refusedAs(t, e)
		return
	}
	operate(t, m.Mesh, "apply", "-f", document(t, e.documents))
	defer operate(t, m.Mesh, "rollback", m.revision)
	for _, s := range e.steps {
		if len(s.output) == 0 {
			t.Errorf("nothing is claimed of\n%s", s.commands)
		}
		await(t, m.Mesh, "what the document says", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			// Less than a request takes that meets no rule yet, and what sh started ends too.
			out, err := m.front.Output(ctx, "timeout", "5", "sh", "-euc", s.commands)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			missing := claimed(out, s.output)
			if lines := strings.Count(strings.TrimSpace(out), "\n") + 1; missing != "" || lines != len(s.output) {
				return fmt.Errorf("no line %q, or more than is claimed, in\n%s", missing, out)
			}
			return nil
		})
	}
}

// refusedAs checks that documents are refused in the words of the example.
func refusedAs(t *testing.T, e example) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(programs(t), "weir"), "validate", "-f", "-")
	cmd.Stdin = strings.NewReader(e.documents)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("taken:\n%s", e.documents)
	}
	for _, line := range e.steps[0].output {
		if !strings.Contains(string(out), line) {
			t.Errorf("%q is not in %s", line, out)
		}
	}
}
