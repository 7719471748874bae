package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// steady calls a service without pause and counts what did not come back as it
// should; and it holds a connection of bytes that is to last.
type steady struct {
	asked, failed atomic.Int64
	mu            sync.Mutex // guards what follows
	first         error

	conn net.Conn
	end  func()
}

func newSteady(t *testing.T, n *meshlab.Node, url, echo string, callers int, pause time.Duration) *steady {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &steady{}
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() { s.call(ctx, n, url, pause) })
	}
	conn, err := n.DialContext(ctx, "tcp", echo)
	if err != nil {
		cancel()
		wg.Wait()
		t.Fatal(err)
	}
	s.conn = conn
	s.end = func() { cancel(); wg.Wait() }
	t.Cleanup(func() { s.end(); _ = conn.Close() })
	return s
}

func (s *steady) call(ctx context.Context, n *meshlab.Node, url string, pause time.Duration) {
	client := &http.Client{Transport: &http.Transport{DialContext: n.DialContext}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		err := get(ctx, client, url)
		if ctx.Err() != nil {
			return
		}
		s.asked.Add(1)
		if err != nil {
			s.failed.Add(1)
			s.mu.Lock()
			if s.first == nil {
				s.first = fmt.Errorf("%s: %w", time.Now().Format(time.RFC3339Nano), err)
			}
			s.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%d %s: %s", resp.StatusCode, resp.Header.Get("weir-error"), body)
	}
	return err
}

// speak sends a word over the connection that lasts and hears it back.
func (s *steady) speak() error {
	_ = s.conn.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.WriteString(s.conn, "word"); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		return err
	}
	if !bytes.Equal(b, []byte("word")) {
		return fmt.Errorf("%q came back", b)
	}
	return nil
}

// check wants that nothing was lost.
func (s *steady) check(t *testing.T, what string) {
	t.Helper()
	if err := s.speak(); err != nil {
		t.Errorf("%s: the connection that lasts: %v", what, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.failed.Load(); n > 0 {
		t.Errorf("%s: %d of %d requests failed; the first: %v", what, n, s.asked.Load(), s.first)
	}
}

func trustedRoots(t *testing.T, m *meshlab.Mesh) (fingerprints []string, signs string) {
	t.Helper()
	ca, err := m.API.CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range ca.Certificates {
		if c.Kind != api.KindRoot {
			continue
		}
		fingerprints = append(fingerprints, c.Fingerprint)
		if c.Signs {
			signs = c.Fingerprint
		}
	}
	return fingerprints, signs
}

// untilStage waits until a rotation is in a stage or past it.
func untilStage(t *testing.T, m *meshlab.Mesh, stages ...string) *api.RotationView {
	t.Helper()
	var r *api.RotationView
	await(t, m, "the rotation to be "+stages[0], func() error {
		ca, err := m.API.CA(t.Context())
		if err != nil {
			return err
		}
		if r = ca.Rotation; r == nil || !strings.Contains(strings.Join(stages, " "), r.Stage) {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	return r
}

func weir(t *testing.T, m *meshlab.Mesh, args ...string) string {
	t.Helper()
	out, err := m.ControlNode().Output(t.Context(), m.Program("weir"), append(args, "--token-file", m.TokenFile())...)
	if err != nil {
		t.Fatalf("weir %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// The control plane is killed in each stage; it goes on where it was.
func TestTheRootIsRotatedUnderTrafficWhateverIsKilled(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	before, signs := trustedRoots(t, m.Mesh)
	if len(before) != 1 || signs != before[0] {
		t.Fatalf("roots %v, %s signs", before, signs)
	}
	s := newSteady(t, m.front, "http://vault:8001/", "vault:9001", 4, 5*time.Millisecond)
	kill := func() {
		m.Control.Kill()
		s.check(t, "without a control plane")
		if err := m.StartControl(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	weir(t, m.Mesh, "ca", "rotate", "--no-wait")
	untilStage(t, m.Mesh, policy.StageTrust, policy.StageReissue)
	if err := m.API.Rotate(t.Context()); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("a second rotation beside the first: %v", err)
	}
	kill()
	untilStage(t, m.Mesh, policy.StageReissue, policy.StageDone)
	kill()
	out := weir(t, m.Mesh, "ca", "status", "-w")
	if !strings.Contains(out, "3 of 3, done") {
		t.Errorf("weir ca status -w ended with:\n%s", out)
	}
	kill()
	after, signs := trustedRoots(t, m.Mesh)
	if len(after) != 1 || after[0] == before[0] || signs != after[0] {
		t.Errorf("roots %v after %v, %s signs", after, before, signs)
	}
	s.check(t, "after the rotation")
	s.end()
	if out := weir(t, m.Mesh, "ca", "show"); !strings.Contains(out, after[0]) || strings.Contains(out, before[0]) {
		t.Errorf("weir ca show:\n%s", out)
	}
	// New connections and new proxies stand under the new root.
	m.until(t, m.front, 200, "", "http://vault:8001/")
	join(t, m.Mesh, meshlab.Workload{Host: "late", Service: "late"})
	t.Logf("%d requests, none lost", s.asked.Load())
}

// A rotation waits for a proxy that is away, names it, and is taken back.
func TestARotationWaitsForAProxyAndCanBeTakenBack(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	before, _ := trustedRoots(t, m.Mesh)
	freeze(t, m.front)
	if err := m.API.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "the rotation to wait for the one proxy", func() error {
		ca, err := m.API.CA(t.Context())
		if err != nil {
			return err
		}
		if r := ca.Rotation; r.Stage != policy.StageTrust || r.Followed != 1 || len(r.Behind) != 1 || r.Behind[0].ServiceName != "frontend" || r.Behind[0].Breaks == "" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	if out := weir(t, m.Mesh, "ca", "status"); !strings.Contains(out, "waits for frontend") {
		t.Errorf("weir ca status:\n%s", out)
	}
	if out := weir(t, m.Mesh, "status"); !strings.Contains(out, "the rotation of the root waits for proxy frontend") {
		t.Errorf("weir status:\n%s", out)
	}
	weir(t, m.Mesh, "ca", "rotate", "--abort")
	untilStage(t, m.Mesh, policy.StageAborted)
	if after, signs := trustedRoots(t, m.Mesh); len(after) != 1 || after[0] != before[0] || signs != before[0] {
		t.Errorf("roots %v after %v, %s signs", after, before, signs)
	}
	thaw(t, m.front)
	m.until(t, m.front, 200, "", "http://vault:8001/")
}

// The control plane that leads is gone for good in the first stage; another one of
// the cluster takes the rotation to its end.
func TestAnotherControlPlaneTakesARotationOn(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 1, 2)
	a, b := m.Planes[0], m.Planes[1]
	app := newBackend(t, bare(t, m, "orders"), "orders", 8002)
	enter(t, m, app.node, meshlab.Workload{Host: "orders", Service: "orders", Ports: []string{"8002"}, Control: a.GRPCAddr() + "," + b.GRPCAddr()})
	echoServer(t, app.node, 9001, "")
	allow(t, m, "frontend", "orders")
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend", Control: b.GRPCAddr() + "," + a.GRPCAddr()})
	await(t, m, "the service", func() error {
		if got := ask(t, front, "http://orders:8002/"); got.Status != 200 {
			return fmt.Errorf("%d", got.Status)
		}
		return nil
	})
	before, err := b.API.CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: front.DialContext}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	if err := a.API.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Process.Kill()
	await(t, m, "the other control plane to end the rotation", func() error {
		if err := get(t.Context(), client, "http://orders:8002/"); err != nil {
			t.Errorf("a request: %v", err)
		}
		now, err := b.API.CA(t.Context())
		if err == nil && (now.Rotation == nil || now.Rotation.Stage != policy.StageDone || now.Certificates[0].Fingerprint == before.Certificates[0].Fingerprint) {
			err = fmt.Errorf("%+v", now.Rotation)
		}
		return err
	})
}
