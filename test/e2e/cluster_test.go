package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// startCluster runs a mesh whose control planes share an etcd cluster.
func startCluster(t *testing.T, etcd, planes int, flags ...string) *meshlab.Mesh {
	t.Helper()
	return startWith(t, meshlab.Config{Etcd: etcd, Planes: planes, EtcdFlags: flags})
}

func TestControlPlanesOnOneStoreAreOne(t *testing.T) {
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
	if _, err := n.Start(ctx, "proxy-late", 0, m.Program("weir-proxy"), "--control", b.GRPCAddr(), "--service", "late", "--token-file", file, "--app-port", "8001", "--advertise", n.Addr4().String()); err != nil {
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
	if strings.Contains(b.Process.Log(), "endpoint turned") {
		t.Errorf("%s checks health, too:\n%s", b.Name, b.Process.Tail())
	}
	if err := a.Process.Stop(20 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	await(t, m, "the other to lead", func() error {
		s, err := b.API.Status(ctx)
		if err == nil && (s.Leader != b.Name || len(s.Members) != 1) {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	if err := b.API.Register(ctx, e); err != nil { // healthy, until it is checked
		t.Fatal(err)
	}
	unhealthy(b)
}
