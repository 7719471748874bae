package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
	"github.com/weir-mesh/weir/test/netlab"
)

// startCluster runs a mesh whose control planes share an etcd cluster.
func startCluster(t *testing.T, etcd, planes int, flags ...string) *meshlab.Mesh {
	t.Helper()
	return startWith(t, meshlab.Config{Etcd: etcd, Planes: planes, EtcdFlags: flags})
}

func TestControlPlanesOnOneStoreAreOne(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 1, 2)
	a, b, ctx := m.Planes[0], m.Planes[1], t.Context()
	if a.API.Token != b.API.Token {
		t.Errorf("the admin tokens differ: %q and %q", a.TokenFile(), b.TokenFile())
	}
	rootA, errA := a.API.RootPEM(ctx)
	rootB, errB := b.API.RootPEM(ctx)
	if err := errors.Join(errA, errB); err != nil || string(rootA) != string(rootB) {
		t.Errorf("the roots differ: %v", err)
	}
	// What one answered, the other shows at once.
	name := policy.ServiceName{Namespace: "default", Name: "orders"}
	for i := range 50 {
		to, from := m.Planes[i%2], m.Planes[(i+1)%2]
		r := policy.DefaultTrafficRule()
		r.MatchPath, r.DestinationSubset = fmt.Sprintf("/%d", i), "none"
		id, err := to.API.AddTrafficRule(ctx, name, r)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := from.API.TrafficRules(ctx, name)
		if err != nil || len(rules) != i+1 || rules[i].ID != id {
			t.Fatalf("after rule %d (%s), the other has %d, %v", i, id, len(rules), err)
		}
	}
	// One leads, and both say who.
	for _, p := range m.Planes {
		await(t, m, "both control planes to know each other", func() error {
			s, err := p.API.Status(ctx)
			if err == nil && (len(s.Members) != 2 || s.Leader != a.Name || s.Members[0].Address != a.GRPCAddr() || s.Members[1].Name != b.Name) {
				err = fmt.Errorf("%+v", s)
			}
			return err
		})
		metrics, err := p.API.Metrics(ctx)
		if err != nil || metrics.Control == nil || metrics.Control.Name != p.Name || metrics.Control.Members != 2 || metrics.Control.Leading != (p == a) {
			t.Errorf("metrics of %s: %+v, %v", p.Name, metrics.Control, err)
		}
	}
	// A token of one lets a proxy join at the other, which is then known to both.
	token, err := a.API.CreateToken(ctx, policy.ServiceName{Namespace: "default", Name: "late"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	n := bare(t, m, "late")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start(ctx, "proxy-late", 0, m.Program("weir-proxy"), "--control", b.GRPCAddr()+","+a.GRPCAddr(), "--service", "late", "--token-file", file, "--app-port", "8001", "--advertise", n.Addr4().String()); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Planes {
		await(t, m, "the proxy at "+p.Name, func() error {
			proxies, err := p.API.Proxies(ctx)
			if err == nil && (len(proxies) != 1 || proxies[0].ServiceName != "late" || proxies[0].Control != b.Name) {
				err = fmt.Errorf("%+v", proxies)
			}
			return err
		})
		if eps, err := p.API.Endpoints(ctx, policy.ServiceName{Namespace: "default", Name: "late"}); err != nil || len(eps) != 1 {
			t.Errorf("endpoints at %s: %+v, %v", p.Name, eps, err)
		}
	}
	out, err := m.ControlNode().Output(ctx, m.Program("weir"), "get", "status", "--token-file", a.TokenFile())
	if err != nil || !strings.Contains(out, "leads") || !strings.Contains(out, b.GRPCAddr()) {
		t.Errorf("weir get status: %v\n%s", err, out)
	}
	// The health that the leader finds (nothing listens there) is known to both,
	// and so is what the next leader finds.
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "o1", "orders", "default", n.Addr4().String(), 9
	if err := b.API.Register(ctx, e); err != nil {
		t.Fatal(err)
	}
	unhealthy := func(p *meshlab.Plane) {
		await(t, m, "the endpoint to be unhealthy at "+p.Name, func() error {
			eps, err := p.API.Endpoints(ctx, name)
			if err == nil && (len(eps) != 1 || eps[0].Status != policy.Unhealthy) {
				err = fmt.Errorf("%+v", eps)
			}
			return err
		})
	}
	unhealthy(a)
	unhealthy(b)
	// Why it is unhealthy is known to both, and will be when this leader is gone.
	found := whyUnhealthy(t, a, name, "o1")
	if other := whyUnhealthy(t, b, name, "o1"); other != found {
		t.Errorf("%s knows %+v, %s %+v", a.Name, found, b.Name, other)
	}
	if strings.Contains(b.Process.Log(), "endpoint turned") {
		t.Errorf("%s checks health, too:\n%s", b.Name, b.Process.Tail())
	}
	// A proxy that moves on does not make its app healthy: nothing listens there.
	late := func() (policy.Endpoint, error) {
		eps, err := a.API.Endpoints(ctx, policy.ServiceName{Namespace: "default", Name: "late"})
		if err == nil && len(eps) != 1 {
			err = fmt.Errorf("%+v", eps)
		}
		return append(eps, policy.Endpoint{})[0], err
	}
	await(t, m, "the app of late to be unhealthy", func() error {
		e, err := late()
		if err == nil && e.Status != policy.Unhealthy {
			err = errors.New(e.Status)
		}
		return err
	})
	b.Process.Kill()
	await(t, m, "the proxy to move on", func() error {
		proxies, err := a.API.Proxies(ctx)
		if e, lateErr := late(); lateErr != nil || e.Status != policy.Unhealthy {
			t.Errorf("while it moves, its endpoint is %+v, %v", e, lateErr)
		}
		// Addresses are told when it attaches; it follows before.
		if err == nil && (len(proxies) != 1 || proxies[0].Control != a.Name || len(proxies[0].Addresses) == 0) {
			err = fmt.Errorf("%+v", proxies)
		}
		return err
	})
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Process.Stop(20 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	await(t, m, "the other to lead", func() error {
		s, err := b.API.Status(ctx)
		if err == nil && s.Leader != b.Name {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	if still := whyUnhealthy(t, b, name, "o1"); still != found {
		t.Errorf("after %s led, %s knows %+v", a.Name, b.Name, still)
	}
	if err := b.API.Register(ctx, e); err != nil { // healthy, until it is checked
		t.Fatal(err)
	}
	unhealthy(b)
}

// whyUnhealthy is the first result that found an endpoint unhealthy, as a control
// plane knows it.
func whyUnhealthy(t *testing.T, p *meshlab.Plane, name policy.ServiceName, id string) api.HealthResult {
	t.Helper()
	h, err := p.API.Health(t.Context(), name, id)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(h.History, func(r api.HealthResult) bool { return !r.Healthy })
	if i < 0 || h.History[i].Detail == "" {
		t.Fatalf("%s knows of no check that turned %s: %+v", p.Name, id, h)
	}
	return h.History[i]
}

// TestAllControlPlanesAreAwayForLongerThanALease: etcd is up and ends the leases
// of all proxies, as nobody renews them. When a control plane is back it knows of
// no endpoint at first, and says so to nobody.
func TestAllControlPlanesAreAwayForLongerThanALease(t *testing.T) {
	t.Parallel()
	m := pairOn(t, startCluster(t, 1, 1))
	stop := m.load(t)
	m.Control.Kill()
	await(t, m.Mesh, "the leases to end", func() error {
		out, err := m.Etcd[0].Ctl(t.Context(), "get", "/weir/mesh/proxies/", "--prefix", "--keys-only")
		if err == nil && strings.TrimSpace(out) != "" {
			err = errors.New(out)
		}
		return err
	})
	if err := m.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.endpoints(t, 2)
	await(t, m.Mesh, "all proxies to be current", func() error {
		proxies, err := m.API.Proxies(t.Context())
		if err == nil && (len(proxies) != 3 || slices.ContainsFunc(proxies, func(p api.ProxyStatus) bool { return p.State != api.Current })) {
			err = fmt.Errorf("%+v", proxies)
		}
		return err
	})
	sent, wrong := stop()
	check(t, sent, wrong)
}

// everywhere awaits that every control plane, but for one that is dead, knows so
// many endpoints of users.
func (m *pair) everywhere(t *testing.T, n int, dead ...*meshlab.Plane) {
	t.Helper()
	for _, p := range m.Planes {
		if slices.Contains(dead, p) {
			continue
		}
		await(t, m.Mesh, fmt.Sprintf("%d endpoints at %s", n, p.Name), func() error {
			eps, err := p.API.Endpoints(t.Context(), usersService)
			if err == nil && len(eps) != n {
				err = fmt.Errorf("there are %d", len(eps))
			}
			return err
		})
	}
}

// watchEndpoint looks at every control plane whether the endpoint of a backend
// is there, until stop is called, which tells of each time that it was missing.
func (m *pair) watchEndpoint(t *testing.T, b *backend) (stop func() []string) {
	gone := func(eps []policy.Endpoint) bool {
		return !slices.ContainsFunc(eps, func(e policy.Endpoint) bool { return e.IP == b.node.Addr4().String() })
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var missing []string
	for _, p := range m.Planes {
		wg.Go(func() {
			for ctx.Err() == nil {
				if eps, err := p.API.Endpoints(ctx, usersService); err == nil && gone(eps) {
					mu.Lock()
					missing = append(missing, time.Now().Format(time.TimeOnly)+" "+p.Name)
					mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	stop = func() []string { cancel(); wg.Wait(); return missing }
	t.Cleanup(func() { stop() })
	return stop
}

// leads awaits that somebody leads, and gives who.
func (m *pair) leads(t *testing.T, besides *meshlab.Plane) *meshlab.Plane {
	t.Helper()
	var leader *meshlab.Plane
	await(t, m.Mesh, "a leader", func() error {
		var last string
		for _, p := range m.Planes {
			if p == besides {
				continue
			}
			s, err := p.API.Status(t.Context())
			if err != nil {
				return err
			}
			if last = s.Leader; last == "" || besides != nil && last == besides.Name {
				return fmt.Errorf("%s says that %q leads", p.Name, last)
			}
		}
		for _, p := range m.Planes {
			if p.Name == last {
				leader = p
			}
		}
		return nil
	})
	return leader
}

// attachedTo tells to which control plane each proxy is attached, by host.
func (m *pair) attachedTo(t *testing.T, at *meshlab.Plane) map[string]string {
	t.Helper()
	proxies, err := at.API.Proxies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range proxies {
		for _, a := range p.Addresses {
			out[a] = p.Control
		}
	}
	return out
}

// TestTroubleInTheCluster is one long story, with traffic and a ledger of
// changes throughout: what goes wrong in production, one after the other.
func TestTroubleInTheCluster(t *testing.T) {
	t.Parallel()
	m := pairOn(t, startCluster(t, 3, 3))
	m.everywhere(t, 2)
	book := newLedger(t, m.Mesh)
	stop := m.load(t)
	step := func(name string, f func(t *testing.T)) {
		if began := time.Now(); t.Run(name, f) {
			t.Logf("%s: %v", name, time.Since(began).Round(100*time.Millisecond))
		}
	}
	step("the_leader_and_a_workload_s_proxy_are_killed", func(t *testing.T) { leaderKilled(t, m, book) })
	step("a_member_of_etcd_is_killed", func(t *testing.T) {
		m.Etcd[0].Process.Kill()
		book.writesAgain(t)
		if err := m.Etcd[0].Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.Etcd[0].Await(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	step("a_control_plane_is_cut_off_from_etcd", func(t *testing.T) { planeCutOff(t, m, book) })
	step("proxies_are_cut_off_from_their_control_plane", func(t *testing.T) { proxyCutOff(t, m, book) })
	step("two_members_of_etcd_are_killed", func(t *testing.T) { noMajority(t, m, book) })
	sent, wrong := stop()
	check(t, sent, wrong)
	t.Logf("%d requests", sent)
	book.close(t)
}

// leaderKilled: another leads within the lease's time, and the proxies of the
// dead one are attached elsewhere before their own leases end. The endpoint of a
// proxy that was killed at the same moment goes, at every control plane.
func leaderKilled(t *testing.T, m *pair, book *ledger) {
	leader := m.leads(t, nil)
	missing := m.watchEndpoint(t, m.users[0])
	began := time.Now()
	leader.Process.Kill()
	m.users[1].node.Proxy.Kill()
	other := m.leads(t, leader)
	t.Logf("%s was killed; %s leads after %v", leader.Name, other.Name, time.Since(began).Round(100*time.Millisecond))
	book.writesAgain(t)
	m.everywhere(t, 1, leader)
	for address, control := range m.attachedTo(t, other) {
		if control == leader.Name {
			t.Errorf("the proxy at %s is attached to %s, which was killed", address, control)
		}
	}
	if err := m.users[1].node.StartProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.everywhere(t, 2, leader)
	if err := leader.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if missing := missing(); len(missing) > 0 {
		t.Errorf("endpoints were missing: %v", missing)
	}
}

// cut parts a host from others, until heal.
func (m *pair) cut(t *testing.T, one *netlab.Host, others ...*netlab.Host) (heal func()) {
	t.Helper()
	var heals []func() error
	for _, o := range others {
		h, err := m.Lab.Partition(one, o)
		if err != nil {
			t.Fatal(err)
		}
		heals = append(heals, h)
	}
	heal = func() {
		t.Helper()
		for _, h := range heals {
			if err := h(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(heal)
	return heal
}

func (m *pair) etcdHosts() (out []*netlab.Host) {
	for _, e := range m.Etcd {
		out = append(out, e.Host)
	}
	return out
}

// planeCutOff: a control plane without the store answers reads with a warning
// and refuses writes; its proxies move on before their lease ends.
func planeCutOff(t *testing.T, m *pair, book *ledger) {
	cutOff := m.controlOf(t)
	missing := m.watchEndpoint(t, m.users[0])
	heal := m.cut(t, cutOff.Host, m.etcdHosts()...)
	var refused *api.Error
	began := time.Now()
	_, err := cutOff.API.UpdateSettings(t.Context(), json.RawMessage(`{"egress":"deny"}`))
	if !errors.As(err, &refused) || refused.Status != 503 || !strings.Contains(refused.Message, "etcd does not answer") || !strings.Contains(refused.Message, "whether it was stored is not known") {
		t.Errorf("a write without the store: %v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	await(t, m.Mesh, "it to say that it is degraded", func() error {
		s, err := cutOff.API.Status(t.Context())
		if err == nil && (s.Status != "degraded" || s.Trouble == "") {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	if rules, err := cutOff.API.SecurityRules(t.Context()); err != nil || len(rules) == 0 {
		t.Errorf("reads: %d rules, %v", len(rules), err)
	}
	for _, p := range m.Planes {
		if p == cutOff {
			continue
		}
		await(t, m.Mesh, "its proxies to move on", func() error { // in time: no endpoint is missing below
			for address, control := range m.attachedTo(t, p) {
				if control == cutOff.Name {
					return fmt.Errorf("%s says that the proxy at %s is still attached to %s", p.Name, address, control)
				}
			}
			return nil
		})
	}
	heal()
	await(t, m.Mesh, "it to be healthy again", func() error {
		s, err := cutOff.API.Status(t.Context())
		if err == nil && s.Status != "healthy" {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	book.writesAgain(t)
	if missing := missing(); len(missing) > 0 {
		t.Errorf("endpoints were missing: %v", missing)
	}
}

// controlOf is the control plane to which the proxy of the first users is
// attached.
func (m *pair) controlOf(t *testing.T) *meshlab.Plane {
	t.Helper()
	var out *meshlab.Plane
	await(t, m.Mesh, "the proxy of users1 to be attached", func() error {
		name := m.attachedTo(t, m.Planes[0])[m.users[0].node.Addr4().String()]
		for _, p := range m.Planes {
			if p.Name == name {
				out = p
				return nil
			}
		}
		return fmt.Errorf("it is at %q", name)
	})
	return out
}

// proxyCutOff: a proxy whose control plane is silent finds another before its
// lease ends.
func proxyCutOff(t *testing.T, m *pair, book *ledger) {
	missing := m.watchEndpoint(t, m.users[0])
	node, was := m.users[0].node, m.controlOf(t)
	heal := m.cut(t, node.Host, was.Host)
	await(t, m.Mesh, "the proxy to move on", func() error {
		if now := m.controlOf(t); now == was {
			return fmt.Errorf("it is attached to %s", now.Name)
		}
		return nil
	})
	heal()
	book.writesAgain(t)
	if missing := missing(); len(missing) > 0 {
		t.Errorf("endpoints were missing: %v", missing)
	}
}

// noMajority: without a majority of etcd writes are refused with a reason, reads
// go on, and all is well when it is back.
func noMajority(t *testing.T, m *pair, book *ledger) {
	m.Etcd[0].Process.Kill()
	m.Etcd[1].Process.Kill()
	var wg sync.WaitGroup
	for _, p := range m.Planes {
		wg.Go(func() { withoutMajority(t, p) })
	}
	wg.Wait()
	ask(t, m.front, "http://users/").want(t, 200, "", "")
	for _, e := range m.Etcd[:2] {
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
	}
	book.writesAgain(t)
	m.leads(t, nil)
	m.everywhere(t, 2)
}

func withoutMajority(t *testing.T, p *meshlab.Plane) {
	began := time.Now()
	var refused *api.Error
	_, err := p.API.AddSecurityRule(t.Context(), allMethods("nobody", "users"))
	if !errors.As(err, &refused) || refused.Status != 503 || !strings.Contains(refused.Message, "etcd does not answer") {
		t.Errorf("a write at %s without a majority: %v", p.Name, err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s took %v to say so", p.Name, took)
	}
	if eps, err := p.API.Endpoints(t.Context(), usersService); err != nil || len(eps) != 2 {
		t.Errorf("reads at %s: %+v, %v", p.Name, eps, err)
	}
	s, err := p.API.Status(t.Context())
	if err != nil || s.Status != "degraded" {
		t.Errorf("status at %s: %+v, %v", p.Name, s, err)
	}
}
