package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// TestModesChangeWithoutALostRequest sends 500 requests a second while the mode goes
// there and back.
func TestModesChangeWithoutALostRequest(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	var good, bad atomic.Int64
	var first atomic.Value
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 10 {
		c := client(t, m.front)
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if err := oneGet(c, "http://vault:8001/"); err != nil {
					bad.Add(1)
					first.CompareAndSwap(nil, err.Error())
				} else {
					good.Add(1)
				}
			}
		})
	}
	modes := []policy.MTLSMode{policy.Disabled, policy.Strict, policy.Permissive, policy.Disabled, policy.Strict}
	for i := range 10 {
		mode := modes[i%len(modes)]
		set(t, m.Mesh, fmt.Sprintf(`{"services":{"vault":{"mtls_mode":%q}}}`, mode))
		m.inForce(t, mode)
	}
	close(stop)
	wg.Wait()
	if bad.Load() > 0 || good.Load() < 1000 {
		t.Errorf("%d requests were answered, %d were not; the first: %v", good.Load(), bad.Load(), first.Load())
	}
	t.Logf("%d requests over 10 changes of the mode", good.Load())
}

func oneGet(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != 200 {
		return fmt.Errorf("%d %s", resp.StatusCode, resp.Header.Get("weir-error"))
	}
	return nil
}

// inForce waits until callers send and the service takes what a mode says.
func (m *secureMesh) inForce(t *testing.T, mode policy.MTLSMode) {
	t.Helper()
	word := "no-rule" // a stranger may come without mTLS, but is nobody
	if mode == policy.Strict {
		word = "mtls-required"
	}
	m.until(t, m.outside, 403, word, "http://"+m.node.Join(8001)+"/")
	await(t, m.Mesh, "callers to hear of "+string(mode), func() error {
		s, err := m.front.Status(t.Context())
		if err != nil {
			return err
		}
		for _, e := range s.Services["default/vault"].Endpoints {
			if e.MTLS == (mode == policy.Disabled) {
				return fmt.Errorf("mTLS is %v", e.MTLS)
			}
		}
		return nil
	})
}

// TestADenyReachesWhatIsUnderWay: what is carried when a rule denies it ends within a
// second, whatever carries it, and what another rule is about does not.
func TestADenyReachesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.stream(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	known(t, m.Mesh, m.front, "vault", "stream")
	known(t, m.Mesh, m.front, "vault", "websocket")
	kept := client(t, m.front)
	if err := oneGet(kept, "http://vault:8001/"); err != nil {
		t.Fatal(err)
	}
	raw, err := m.front.DialContext(t.Context(), "tcp", "vault:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	echo := func() error {
		_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(raw, "x"); err != nil {
			return err
		}
		_, err := io.ReadFull(raw, make([]byte, 1))
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	streams := m.streams(t)

	// A rule about something else ends nothing.
	other := m.rule(t, policy.SecurityRule{Action: policy.Audit, Sources: []string{"*/*"}, DestinationNamespace: "default", DestinationService: "vault", AllowedMethods: []string{"*"}})
	await(t, m.Mesh, "the audit to count", func() error {
		if err := oneGet(kept, "http://vault:8001/"); err != nil {
			t.Fatal(err)
		}
		return m.counted(t, `weir_audited_total{`, other)
	})
	for name, p := range streams {
		select {
		case <-p.Done():
			t.Fatalf("%s has ended: %s", name, p.Tail())
		default:
		}
	}
	if err := echo(); err != nil {
		t.Fatalf("the connection has ended: %v", err)
	}

	deny := m.rule(t, policy.SecurityRule{
		Action: policy.Deny, SourceNamespace: "default", SourceService: "front*", DestinationNamespace: "default", DestinationService: "vault", AllowedMethods: []string{"*"},
	})
	began := time.Now()
	if n, err := raw.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection gave %d bytes, %v", n, err)
	}
	t.Logf("the connection was cut after %v", time.Since(began))
	for name, p := range streams {
		select {
		case <-p.Done():
			t.Logf("%s ended after %v", name, time.Since(began))
		case <-time.After(30 * time.Second):
			t.Errorf("%s goes on: %s", name, p.Tail())
		}
	}
	if err := oneGet(kept, "http://vault:8001/"); err == nil || err.Error() != "403 denied" {
		t.Errorf("the next request of a kept connection: %v", err)
	}
	await(t, m.Mesh, "the denial to be counted by its rule", func() error { return m.counted(t, `weir_denied_by_rule_total{`, deny) })
	a := ask(t, m.front, "http://vault:8001/")
	a.want(t, 403, "denied", denial)
	if a.Header.Get("X-Request-ID") == "" || strings.Contains(fmt.Sprint(a.Header, a.Body), deny) {
		t.Errorf("the caller is told %v", a.Header)
	}
	if out := operate(t, m.Mesh, "get", "security-rules"); !strings.Contains(out, "deny") {
		t.Error(out)
	}
}

// stream starts what never ends on the vault: an answer on 8002, which speaks both
// versions of HTTP, and a WebSocket on 8765.
func (m *secureMesh) stream(t *testing.T) {
	t.Helper()
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	serve(t, m.node, "stream", 8002, func(w http.ResponseWriter, r *http.Request) {
		for {
			_, _ = io.WriteString(w, "tick\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-end:
				return
			case <-r.Context().Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	if _, err := m.node.Start(t.Context(), "websocket", webSocketPort, debianPython, script(t, "websocket_server.py"), fmt.Sprint(webSocketPort)); err != nil {
		t.Fatal(err)
	}
	register(t, m.Mesh, m.node, "vault", "stream", 8002, "http2")
	register(t, m.Mesh, m.node, "vault", "websocket", webSocketPort, "http")
}

// streams starts programs that follow them, and waits until they do.
func (m *secureMesh) streams(t *testing.T) map[string]*meshlab.Process {
	t.Helper()
	out := map[string]*meshlab.Process{}
	for name, c := range map[string]struct {
		ready   string
		command []string
	}{
		"http1":     {"tick", []string{"curl", "-sSN", "--http1.1", "http://vault:8002/"}},
		"http2":     {"tick", []string{"curl", "-sSN", "--http2-prior-knowledge", "http://vault:8002/"}},
		"websocket": {"ready", append(webSocketClients(t)["python"], "stay", fmt.Sprintf("ws://vault:%d/", webSocketPort))},
	} {
		p, err := m.front.Start(t.Context(), "follow-"+name, 0, c.command[0], c.command[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		await(t, m.Mesh, name, func() error { return printed(p, c.ready) })
		out[name] = p
	}
	return out
}

// counted tells whether the vault's proxy has a series with the rule.
func (m *secureMesh) counted(t *testing.T, series, rule string) error {
	out, err := m.node.Output(t.Context(), "curl", "-sS", "http://127.0.0.1:15000/metrics")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, series) && strings.Contains(line, `rule="`+rule+`"`) {
			return nil
		}
	}
	return fmt.Errorf("no %s with %s", series, rule)
}
