package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

var usersService = policy.ServiceName{Namespace: "default", Name: "users"}

// pair is a frontend in front of two endpoints of "users".
type pair struct {
	*meshlab.Mesh
	front *meshlab.Node
	users [2]*backend
}

func newPair(t *testing.T) *pair { return pairOn(t, start(t)) }

func pairOn(t *testing.T, mesh *meshlab.Mesh) *pair {
	m := &pair{Mesh: mesh}
	for i := range m.users {
		name := fmt.Sprintf("users%d", i+1)
		m.users[i] = newBackend(t, bare(t, m.Mesh, name), name, 8001)
		enter(t, m.Mesh, m.users[i].node, meshlab.Workload{Host: name, Service: "users", Ports: []string{"8001"}})
	}
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	allow(t, m.Mesh, "frontend", "users")
	set(t, m.Mesh, `{"resilience":{"retry":{"delay":0.01}},"load_balancing":{"strategy":"round_robin"}}`)
	await(t, m.Mesh, "both endpoints", func() error {
		for range 4 {
			if a := ask(t, m.front, "http://users/"); a.Status != 200 {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
		}
		if m.users[0].count() == 0 || m.users[1].count() == 0 {
			return errors.New("one was not asked")
		}
		return nil
	})
	return m
}

// endpoints awaits that the control plane knows so many endpoints of users.
func (m *pair) endpoints(t *testing.T, n int) {
	t.Helper()
	await(t, m.Mesh, fmt.Sprintf("%d endpoints", n), func() error {
		eps, err := m.API.Endpoints(t.Context(), usersService)
		if err == nil && len(eps) != n {
			err = fmt.Errorf("there are %d", len(eps))
		}
		return err
	})
}

// load sends GET requests, each on a connection of its own, until stop is
// called, which gives how many were sent and what went wrong.
func (m *pair) load(t *testing.T) (stop func() (sent int, wrong []string)) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sent int
	var wrong []string
	c := &http.Client{Transport: &http.Transport{DialContext: m.front.DialContext, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	note := func(err error, text string) {
		mu.Lock()
		defer mu.Unlock()
		if sent++; err != nil {
			wrong = append(wrong, err.Error())
		} else if text != "" {
			wrong = append(wrong, text)
		}
	}
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := c.Get("http://users/") // not cut by ctx: each is to end well
				if err != nil {
					note(err, "")
					continue
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				text := ""
				if resp.StatusCode != 200 {
					text = fmt.Sprintf("%d %s", resp.StatusCode, body)
				}
				note(err, text)
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond): // not to fill two cores
				}
			}
		})
	}
	return func() (int, []string) {
		cancel()
		wg.Wait()
		return sent, wrong
	}
}

func check(t *testing.T, sent int, wrong []string) {
	t.Helper()
	if len(wrong) > 0 || sent < 10 {
		t.Errorf("%d of %d requests failed; the first: %v", len(wrong), sent, wrong[:min(3, len(wrong))])
	}
}

func TestAKilledControlPlaneStopsNoTrafficAndLosesNothing(t *testing.T) {
	t.Parallel()
	m := newPair(t)
	ctx := t.Context()
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "o1", "orders", "default", "192.0.2.1", 80
	if err := m.API.Register(ctx, e); err != nil {
		t.Fatal(err)
	}
	before, err := m.API.Services(ctx)
	if err != nil {
		t.Fatal(err)
	}
	token, err := m.API.CreateToken(ctx, policy.ServiceName{Namespace: "default", Name: "late"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	root, err := m.API.RootPEM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stop := m.load(t)
	var ids []string
	for i := range 3 { // what was answered 200 a moment before is there
		r := policy.DefaultTrafficRule()
		r.MatchPath, r.DestinationSubset = fmt.Sprintf("/never%d", i), "none"
		id, err := m.API.AddTrafficRule(ctx, usersService, r)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		m.Control.Kill()
		if i == 0 {
			for range 10 {
				ask(t, m.front, "http://users/").want(t, 200, "", "")
			}
			// A name that nobody asked for before is not known now; nobody hangs for it.
			if out, err := m.front.Output(ctx, "curl", "-sS", "--max-time", "15", "http://orders/"); err == nil || strings.Contains(err.Error(), "timed out") {
				t.Errorf("orders: %q, %v", out, err)
			}
		}
		if err := m.StartControl(ctx); err != nil {
			t.Fatal(err)
		}
		rules, err := m.API.TrafficRules(ctx, usersService)
		if err != nil || len(rules) != i+1 || rules[i].ID != id {
			t.Fatalf("after kill %d there are %+v, %v; the last was %s", i+1, rules, err, id)
		}
	}
	sent, wrong := stop()
	check(t, sent, wrong)
	after, err := m.API.Services(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if i >= len(after) || before[i].VirtualIPv4 != after[i].VirtualIPv4 || before[i].ServiceName != after[i].ServiceName {
			t.Errorf("services were %+v and are %+v", before, after)
			break
		}
	}
	if rules, err := m.API.SecurityRules(ctx); err != nil || len(rules) != 1 {
		t.Errorf("security rules %+v, %v", rules, err)
	}
	if again, err := m.API.RootPEM(ctx); err != nil || string(again) != string(root) {
		t.Errorf("the root changed: %v", err)
	}
	settings, err := m.API.Settings(ctx)
	if err != nil || !strings.Contains(fmt.Sprint(settings["load_balancing"]), "round_robin") {
		t.Errorf("settings %v, %v", settings["load_balancing"], err)
	}
	m.endpoints(t, 2)
	late := bare(t, m.Mesh, "late")
	if out := runUntilJoined(t, m.Mesh, late, "late", token.Token); !strings.Contains(out, `"joined"`) {
		t.Errorf("a token of before: %s", out)
	}
	// The proxies have found it again: a change reaches them.
	for _, id := range ids {
		if err := m.API.DeleteTrafficRule(ctx, usersService, id); err != nil {
			t.Fatal(err)
		}
	}
	await(t, m.Mesh, "a change to reach the frontend", func() error {
		if a := ask(t, m.front, "http://users/never0"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
}

// runUntilJoined runs a proxy until it says that it is running, or ends.
func runUntilJoined(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, service, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := n.Start(t.Context(), "proxy-once-"+service, 0, m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", service, "--token-file", file)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	await(t, m, "the proxy to say something", func() error {
		select {
		case <-p.Done():
			return nil
		default:
		}
		if !strings.Contains(p.Log(), `"running"`) {
			return errors.New(p.Log())
		}
		return nil
	})
	return p.Log()
}

func TestAProxyRestartsFromItsStateWithoutTheControlPlane(t *testing.T) {
	t.Parallel()
	m := newPair(t)
	for host, want := range map[string]string{"front": "round_robin", "users1": "frontend", "users2": "frontend"} {
		await(t, m.Mesh, "the state of "+host+" to be written", func() error { // a second after a change
			b, err := os.ReadFile(filepath.Join(m.Dir, "proxy-"+host, "state.pb"))
			if err == nil && !strings.Contains(string(b), want) {
				err = errors.New("it is not all there yet")
			}
			return err
		})
	}
	m.Control.Kill()
	for _, n := range []*meshlab.Node{m.front, m.users[0].node, m.users[1].node} {
		n.Proxy.Kill()
		if err := n.StartProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 {
		a := ask(t, m.front, "http://users/")
		a.want(t, 200, "", "")
		if a.Header.Get("X-Request-ID") == "" {
			t.Error("it did not go through the proxy")
		}
	}
	// The rules are those of before as well: policy does not fall open.
	ask(t, m.front, "-X", "PATCH", "http://users/").want(t, 403, "method", denial)
	s, err := m.front.Status(t.Context())
	if err != nil || s.Control.Connected {
		t.Errorf("status %+v, %v", s.Control, err)
	}
	if err := m.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "the frontend to find the control plane", func() error {
		s, err := m.front.Status(t.Context())
		if err == nil && !s.Control.Connected {
			err = errors.New("not yet")
		}
		return err
	})
	m.endpoints(t, 2)
}

func TestAKilledProxyCostsItsCallersNothingAndItsEndpointLeaves(t *testing.T) {
	t.Parallel()
	m := newPair(t)
	m.endpoints(t, 2)
	stop := m.load(t)
	m.users[0].node.Proxy.Kill()
	m.endpoints(t, 1)
	sent, wrong := stop()
	check(t, sent, wrong)
	m.users[1].forget()
	for range 4 {
		ask(t, m.front, "http://users/").want(t, 200, "", "users2\n")
	}
	if err := m.users[0].node.StartProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.endpoints(t, 2)
	m.users[0].forget()
	await(t, m.Mesh, "the first to be asked again", func() error {
		ask(t, m.front, "http://users/").want(t, 200, "", "")
		if m.users[0].count() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestAPartitionFromTheControlPlaneHeals(t *testing.T) {
	t.Parallel()
	m := newPair(t)
	heal1, err := m.Lab.Partition(m.Host, m.users[0].node.Host)
	if err != nil {
		t.Fatal(err)
	}
	heal2, err := m.Lab.Partition(m.Host, m.front.Host)
	if err != nil {
		t.Fatal(err)
	}
	stop := m.load(t)
	r := policy.DefaultTrafficRule()
	r.MatchPath, r.DestinationSubset = "/gone", "none"
	if _, err := m.API.AddTrafficRule(t.Context(), usersService, r); err != nil {
		t.Fatal(err)
	}
	m.endpoints(t, 1) // the lease of the first ends; the frontend does not hear of it
	sent, wrong := stop()
	check(t, sent, wrong)
	ask(t, m.front, "http://users/gone").want(t, 200, "", "")
	if err := errors.Join(heal1(), heal2()); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "the change to arrive after all", func() error {
		if a := ask(t, m.front, "http://users/gone"); a.Status != 503 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	m.endpoints(t, 2)
}

func TestAProxyWaitsForTheControlPlaneAndSaysSo(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "early")
	token, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "early"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m.Control.Kill()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := n.Start(t.Context(), "proxy-early", 0, m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", "early", "--token-file", file)
	if err != nil {
		t.Fatal(err)
	}
	await(t, m, "the proxy to complain", func() error {
		if log := p.Log(); strings.Count(log, "no certificate yet; trying again") < 2 || !strings.Contains(log, m.ControlAddr()) || !strings.Contains(log, "refused") {
			return errors.New(log)
		}
		return nil
	})
	if err := m.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, m, "the proxy to be ready", func() error {
		_, err := n.Output(t.Context(), "curl", "-sS", "--fail", "--max-time", "5", "http://127.0.0.1:15000/ready")
		return err
	})
	if err := p.Stop(15 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	// And one that never finds it ends by SIGTERM all the same.
	m.Control.Kill()
	p, err = n.Start(t.Context(), "proxy-never", 0, m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", "early", "--token-file", file)
	if err != nil {
		t.Fatal(err)
	}
	await(t, m, "the proxy to complain", func() error {
		if !strings.Contains(p.Log(), "trying again") {
			return errors.New(p.Log())
		}
		return nil
	})
	if err := p.Stop(5 * time.Second); err != nil {
		t.Errorf("SIGTERM while it waits: %v", err)
	}
}
