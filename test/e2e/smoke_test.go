package e2e

import (
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

func TestAnUnmodifiedAppIsReachedByNameWithMTLS(t *testing.T) {
	t.Parallel()
	m := start(t)
	users, err := m.Bare("users")
	if err != nil {
		t.Fatal(err)
	}
	web(t, m, users, "8001", map[string]string{"index.html": "hello from users\n"})
	if err := m.Join(t.Context(), users, meshlab.Workload{Host: "users", Service: "user-service", Ports: []string{"8001"}}); err != nil {
		t.Fatal(err)
	}
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	allow(t, m, "frontend", "user-service")
	if got := curl(t, front, "http://user-service/"); got != "hello from users\n" {
		t.Errorf("got %q", got)
	}
}
