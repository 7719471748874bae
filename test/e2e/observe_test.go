package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

// TestWhatIsSeenOfARequest: the access log of both sidecars, turned on and off
// live, and the metrics as Prometheus reads them.
func TestWhatIsSeenOfARequest(t *testing.T) {
	t.Parallel()
	m := start(t)
	users, err := m.Bare("users")
	if err != nil {
		t.Fatal(err)
	}
	web(t, m, users, "8001", map[string]string{"index.html": "hello\n"})
	if err := m.Join(t.Context(), users, meshlab.Workload{Host: "users", Service: "user-service", Ports: []string{"8001"}}); err != nil {
		t.Fatal(err)
	}
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	allow(t, m, "frontend", "user-service")
	set := func(patch string) {
		t.Helper()
		if _, err := m.API.UpdateSettings(t.Context(), json.RawMessage(patch)); err != nil {
			t.Fatal(err)
		}
	}

	curl(t, front, "http://user-service/?before")
	set(`{"observability": {"access_logging": true}}`)
	n := 0
	err = m.Await(t.Context(), "access log lines at both ends", func(context.Context) error {
		n++
		curl(t, front, "-H", "X-Request-ID: mine", fmt.Sprintf("http://user-service/?with=%d", n))
		// A line is written a moment after its answer: one of an earlier try does.
		out, in := logged(front.Proxy, "/?with="), logged(users.Proxy, "/?with=")
		if out == nil || in == nil {
			return errors.New("no line yet")
		}
		wantLine(t, out, map[string]any{"direction": "outbound", "request_id": "mine", "source": "default/frontend", "destination": "user-service.default", "method": "GET", "status": 200.0})
		wantLine(t, in, map[string]any{"direction": "inbound", "request_id": "mine", "source": "default/frontend", "method": "GET", "status": 200.0})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	text := curl(t, front, "http://127.0.0.1:15000/metrics")
	for _, want := range []string{
		`weir_requests_total{code="200",direction="outbound",namespace="default",service="user-service"}`,
		`weir_request_duration_seconds_bucket{direction="outbound"`, "weir_certificate_expiry_timestamp_seconds", "weir_control_connected 1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
	set(`{"observability": {"metrics_enabled": false, "access_logging": false}}`)
	err = m.Await(t.Context(), "metrics off", func(context.Context) error {
		if got := curl(t, front, "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:15000/metrics"); got != "404" {
			return fmt.Errorf("status %s", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	curl(t, front, "http://user-service/?after")
	set(`{"observability": {"access_logging": true}}`)
	err = m.Await(t.Context(), "access log lines again", func(context.Context) error {
		curl(t, front, "http://user-service/?again")
		if logged(front.Proxy, "/?again") == nil {
			return errors.New("no line yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Lines are in order, so those of the times when it was off would be there.
	for _, path := range []string{"/?before", "/?after"} {
		if got := logged(front.Proxy, path); got != nil {
			t.Errorf("logged although off: %v", got)
		}
	}
}

// logged finds the access log's first line for a path that begins so in what a
// sidecar printed.
func logged(p *meshlab.Process, path string) map[string]any {
	lines := bufio.NewScanner(strings.NewReader(p.Log()))
	for lines.Scan() {
		var line map[string]any
		if json.Unmarshal(lines.Bytes(), &line) != nil {
			continue
		}
		if at, ok := line["path"].(string); ok && strings.HasPrefix(at, path) {
			return line
		}
	}
	return nil
}

func wantLine(t *testing.T, line, want map[string]any) {
	t.Helper()
	for key, value := range want {
		if line[key] != value {
			t.Errorf("%s is %v in %v, want %v", key, line[key], line, value)
		}
	}
}
