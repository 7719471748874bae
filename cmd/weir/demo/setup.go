package demo

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// demo is one run.
type demo struct {
	cfg     Config
	out     *report
	started time.Time

	mesh *meshlab.Mesh
	apps *apps

	frontend, stranger *meshlab.Node   // they only call
	users              []*meshlab.Node // users-a, users-b of v1, users-c of v2
	orders, cache      *meshlab.Node
	outside, spare     *meshlab.Node // not in the mesh

	sent    tally  // what the frontend sent to the mesh
	removed string // what remove found gone
}

// The names of the mesh's services, all in the namespace "default".
const (
	userService  = "user-service"
	orderService = "order-service"
	cacheService = "cache"
)

// Settings that differ from the defaults: exact turns to be counted, and a
// circuit that is worth waiting for.
const (
	failureThreshold = 3
	circuitTimeout   = 2 * time.Second
)

// userSettings are user-service's own settings, with a rate limit or without.
func userSettings(limit map[string]any) map[string]any {
	s := map[string]any{
		"strategy":        "round_robin",
		"circuit_breaker": map[string]any{"enabled": true, "failure_threshold": failureThreshold, "timeout": circuitTimeout.Seconds()},
	}
	if limit != nil {
		s["rate_limit"] = limit
	}
	return map[string]any{"services": map[string]any{userService: s}}
}

// setUp starts everything. What was started when it fails is removed by remove.
func (d *demo) setUp(ctx context.Context) error {
	d.out.line("weir demo: a mesh on this machine%s", where())
	m, err := meshlab.Start(ctx, meshlab.Config{Bin: d.cfg.Bin, Progress: d.out.progress})
	if err != nil {
		return err
	}
	d.mesh = m
	d.out.progress("namespaces are w-%s-*", m.Lab.ID())
	if err := d.configure(ctx); err != nil {
		return err
	}
	if err := d.hosts(); err != nil {
		return err
	}
	if d.apps, err = findApps(ctx, m); err != nil {
		return err
	}
	d.out.progress("apps: %s; callers: curl%s", d.apps, d.apps.caller())
	if err := d.startAll(ctx); err != nil {
		return err
	}
	return d.awaitMesh(ctx)
}

// where tells how the namespaces are to be had.
func where() string {
	if inUserNamespace() {
		return ", in a user namespace (not root)"
	}
	return ", as root"
}

// inUserNamespace tells whether this user namespace knows only some users; the
// machine's own knows all 2³²-1.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !strings.Contains(string(b), "4294967295")
}

func (d *demo) hosts() error {
	d.users = make([]*meshlab.Node, 3)
	for _, h := range []struct {
		name string
		to   **meshlab.Node
	}{
		{"users-a", &d.users[0]}, {"users-b", &d.users[1]}, {"users-c", &d.users[2]}, {"orders", &d.orders}, {"cache", &d.cache},
		{"frontend", &d.frontend}, {"stranger", &d.stranger}, {"outside", &d.outside}, {"spare", &d.spare},
	} {
		n, err := d.mesh.Bare(h.name)
		if err != nil {
			return err
		}
		*h.to = n
	}
	return nil
}

// configure says what the mesh is to do, before anybody joins: then nobody has
// to be waited for.
func (d *demo) configure(ctx context.Context) error {
	settings := userSettings(nil)
	settings["resilience"] = map[string]any{"retry": map[string]any{"delay": 0.02}}
	if _, err := d.mesh.API.UpdateSettings(ctx, settings); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	for _, service := range []string{userService, orderService, cacheService} {
		if _, err := d.mesh.Allow(ctx, "frontend", service); err != nil {
			return fmt.Errorf("allow frontend to call %s: %w", service, err)
		}
	}
	r := policy.DefaultTrafficRule()
	r.MatchHeaders["version"], r.DestinationService, r.DestinationSubset = "beta", userService, "v2"
	if _, err := d.mesh.API.AddTrafficRule(ctx, name(userService), r); err != nil {
		return fmt.Errorf("traffic rule: %w", err)
	}
	return nil
}

func name(service string) policy.ServiceName {
	return policy.ServiceName{Namespace: "default", Name: service}
}

// startAll starts the apps, and beside each its redirection and sidecar.
func (d *demo) startAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3) // two cores, and some of it is waiting
	start := func(n *meshlab.Node, w meshlab.Workload, app func(context.Context, *meshlab.Node) error) {
		g.Go(func() error {
			w.Host = n.Host.Name()
			if app != nil {
				if err := app(ctx, n); err != nil {
					return err
				}
			}
			if w.Service == "" {
				return nil
			}
			d.out.progress("%s: %s", w.Host, plus(app != nil))
			return d.mesh.Join(ctx, n, w)
		})
	}
	for i, version := range []string{"v1", "v1", "v2"} {
		start(d.users[i], meshlab.Workload{Service: userService, Ports: []string{userPort}, Labels: []string{"version=" + version}},
			func(ctx context.Context, n *meshlab.Node) error { return d.apps.startWeb(ctx, n, version) })
	}
	start(d.orders, meshlab.Workload{Service: orderService, Ports: []string{orderPort}}, d.apps.startFiles)
	start(d.cache, meshlab.Workload{Service: cacheService, Ports: []string{cachePort + "/tcp"}}, d.apps.startCache)
	start(d.frontend, meshlab.Workload{Service: "frontend"}, nil)
	start(d.stranger, meshlab.Workload{Service: "stranger"}, nil)
	start(d.outside, meshlab.Workload{}, func(ctx context.Context, n *meshlab.Node) error { return d.apps.startWeb(ctx, n, "outside") })
	return g.Wait()
}

func plus(app bool) string {
	if app {
		return "app, weir-init, weir-proxy"
	}
	return "weir-init, weir-proxy"
}

// awaitMesh waits until the frontend's sidecar knows all endpoints, with their
// sidecars. It learns of a service when its name is first asked for.
func (d *demo) awaitMesh(ctx context.Context) error {
	want := map[string]int{userService: len(d.users), orderService: 1, cacheService: 1}
	return d.mesh.Await(ctx, "the frontend's sidecar", func(ctx context.Context) error {
		for service := range want {
			if _, err := d.frontend.Output(ctx, "getent", "ahostsv4", service); err != nil {
				return fmt.Errorf("the name %s: %w", service, err)
			}
		}
		st, err := d.frontend.Status(ctx)
		if err != nil {
			return err
		}
		for service, n := range want {
			meshed := 0
			for _, e := range st.Services[name(service).String()].Endpoints {
				if e.MTLS {
					meshed++
				}
			}
			if meshed != n {
				return fmt.Errorf("%s: %d endpoints are known with their sidecars, want %d", service, meshed, n)
			}
		}
		return nil
	})
}

// sidecars are the nodes of the mesh.
func (d *demo) sidecars() []*meshlab.Node {
	return append([]*meshlab.Node{d.frontend, d.stranger, d.orders, d.cache}, d.users...)
}

// processes are the programs whose logs tell what went wrong.
func (d *demo) processes() []*meshlab.Process {
	out := []*meshlab.Process{d.mesh.Control}
	for _, n := range []*meshlab.Node{d.frontend, d.users[0], d.users[1]} {
		out = append(out, n.Proxy)
	}
	return out
}
