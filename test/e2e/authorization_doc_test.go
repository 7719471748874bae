package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

// newOrdersMesh is the mesh of docs/AUTHORIZATION.md.
func newOrdersMesh(t *testing.T) *shopMesh {
	m := &shopMesh{Mesh: start(t)}
	n := bare(t, m.Mesh, "orders")
	const server = "server { listen %d; server_name _; location / { return 200 \"orders: $request_method $request_uri\\n\"; } }\n"
	nginx(t, m.Mesh, n, 8080, fmt.Sprintf(server, 8080)+fmt.Sprintf(server, 8081))
	echoServer(t, n, 9001, "")
	enter(t, m.Mesh, n, meshlab.Workload{Host: "orders", Service: "orders", Ports: []string{"8080", "8081", "9001/tcp"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	set(t, m.Mesh, fmt.Sprintf(`{"security":{"jwt_secret":%q},"resilience":{"retry":{"delay":0.01}}}`, jwtSecret))
	m.revision = strings.Fields(strings.Split(operate(t, m.Mesh, "history", "--limit", "1"), "\n")[1])[0]
	await(t, m.Mesh, "orders", func() error {
		if a := ask(t, m.front, "http://orders:8080/"); a.Status != 403 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	return m
}

func TestSecurityRulesDoWhatTheirDocumentSays(t *testing.T) {
	t.Parallel()
	m := newOrdersMesh(t)
	sections := strings.Split(readDocument(t, "docs/AUTHORIZATION.md"), "\n## ")[1:]
	if len(sections) < 10 {
		t.Fatalf("docs/AUTHORIZATION.md has %d sections", len(sections))
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
}
