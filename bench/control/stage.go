package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// writers is how many calls of the API are made at a time where it is to go
// fast.
const writers = 64

// stage is the mesh that is measured.
type stage struct {
	size  size
	mesh  *meshlab.Mesh
	fleet *fleet
	logf  func(format string, args ...any)
	http  *http.Client

	retried atomic.Int64 // registrations that had to be tried again
}

func openStage(ctx context.Context, bin string, z size, logf func(string, ...any)) (*stage, error) {
	m, err := meshlab.Start(ctx, meshlab.Config{Bin: bin, Control: []string{"--log-level", "warn"}, Progress: logf})
	if err != nil {
		return nil, err
	}
	s := &stage{size: z, mesh: m, logf: logf, fleet: newFleet(&z), http: &http.Client{Transport: &http.Transport{
		DialContext: m.Host.DialContext, MaxIdleConnsPerHost: writers,
	}}}
	// Nobody is at the endpoints' addresses before checks.
	if err := s.setChecks(ctx, 0); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) close() error {
	s.fleet.close()
	s.http.CloseIdleConnections()
	return s.mesh.Close()
}

// api is a client that keeps its connections.
func (s *stage) api() *api.Client {
	return &api.Client{BaseURL: s.mesh.API.BaseURL, Token: s.mesh.API.Token, HTTP: s.http}
}

// pid is the control plane's.
func (s *stage) pid() int { return s.mesh.Control.Pid() }

// rss is the control plane's memory in MiB, after what was done before has
// settled.
func (s *stage) rss(ctx context.Context) (float64, error) {
	if err := sleep(ctx, s.size.settle); err != nil {
		return 0, err
	}
	n, err := resident(s.pid())
	return float64(n) / (1 << 20), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// each calls f for from ≤ i < to, writers at a time.
func each(ctx context.Context, from, to int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := from; i < to && ctx.Err() == nil; i++ {
		g.Go(func() error { return f(ctx, i) })
	}
	return g.Wait()
}

// register gives services their endpoints, but for those that proxies will
// bring, and tells how many it registered.
func (s *stage) register(ctx context.Context, from, to int) (int, error) {
	var todo []policy.Endpoint
	for service := from; service < to; service++ {
		for i := range s.size.endpoints - s.size.residents(service) {
			todo = append(todo, endpoint(service, i, 100))
		}
	}
	client := s.api()
	return len(todo), each(ctx, 0, len(todo), func(ctx context.Context, i int) error {
		for tries := 1; ; tries++ {
			err := client.Register(ctx, todo[i])
			var refused *api.Error
			if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || tries == 10 {
				return err
			}
			s.retried.Add(1) // etcd was slow: as a user would, once more
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
		}
	})
}

// apply gives services their endpoints by `weir apply`, as a user would from a
// file, and tells how many there were.
func (s *stage) apply(ctx context.Context, from, to int) (int, error) {
	var text strings.Builder
	n := 0
	for service := from; service < to; service++ {
		for i := range s.size.endpoints {
			e := endpoint(service, i, 100)
			fmt.Fprintf(&text, "---\nkind: Endpoint\nservice: %s\nspec: {id: %s, ip: %s, port: %d, labels: {version: %s}}\n",
				e.ServiceName, e.ID, e.IP, e.Port, e.Labels["version"])
			n++
		}
	}
	file := filepath.Join(s.mesh.Dir, "endpoints.yml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return 0, err
	}
	_, err := s.mesh.ControlNode().Output(ctx, s.mesh.Program("weir"), "apply", "-f", file, "--token-file", s.mesh.TokenFile())
	return n, err
}

// want is the digest of each of the few services as the API lists it.
func (s *stage) want(ctx context.Context) ([]digest, error) {
	out := make([]digest, s.size.few)
	client := s.api()
	return out, each(ctx, 0, len(out), func(ctx context.Context, i int) error {
		endpoints, err := client.Endpoints(ctx, serviceName(i))
		out[i] = digestOf(endpoints)
		if err == nil && len(endpoints) != s.size.endpoints {
			err = fmt.Errorf("%s has %d endpoints, not %d", serviceName(i), len(endpoints), s.size.endpoints)
		}
		return err
	})
}

// await asks every so often until there is no error, at most a limit, and gives
// the last one.
func await(ctx context.Context, limit, every time.Duration, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if sleep(ctx, every) != nil {
			return err
		}
	}
}

// equal waits until every proxy holds of every service it follows what the API
// lists. The error says how many are behind.
func (s *stage) equal(ctx context.Context, limit time.Duration) error {
	want, err := s.want(ctx)
	if err != nil {
		return err
	}
	return await(ctx, limit, 10*time.Millisecond, func(context.Context) error {
		if n := s.fleet.behind(want); n > 0 {
			return fmt.Errorf("%d services of %d proxies differ from what the API lists", n, s.size.proxies)
		}
		return nil
	})
}

// attached waits until the control plane counts every proxy as connected and
// following all it asked for.
func (s *stage) attached(ctx context.Context, limit time.Duration) error {
	client := s.api()
	return await(ctx, limit, 200*time.Millisecond, func(ctx context.Context) error {
		// The proxies are asked first: a list of thousands, again and again, would
		// be work for the control plane that it is not to be measured with.
		if n := s.fleet.connected(); n != s.size.proxies {
			return fmt.Errorf("%d of %d proxies are connected", n, s.size.proxies)
		}
		st, err := client.Status(ctx)
		if err != nil {
			return err
		}
		if st.Proxies != s.size.proxies {
			return fmt.Errorf("%d of %d proxies are attached", st.Proxies, s.size.proxies)
		}
		known, err := client.Proxies(ctx)
		if err != nil {
			return err
		}
		n := 0
		for i := range known {
			if known[i].Subscribed >= s.size.follows { // the mesh and their own Inbound besides
				n++
			}
		}
		if n != s.size.proxies {
			return fmt.Errorf("%d of %d proxies follow what they should", n, s.size.proxies)
		}
		return nil
	})
}

// realProxy starts a weir-proxy, has it use services, and gives its memory in
// MiB once it has settled.
func (s *stage) realProxy(ctx context.Context, host string) (float64, error) {
	n, err := s.mesh.Bare(host)
	if err != nil {
		return 0, err
	}
	if err := s.mesh.Join(ctx, n, meshlab.Workload{Host: host, Service: "front"}); err != nil {
		return 0, err
	}
	for i := range s.size.real {
		name := serviceName(i)
		addrs, err := n.Resolver().LookupNetIP(ctx, "ip4", name.Name+"."+name.Namespace)
		if err != nil || len(addrs) == 0 {
			return 0, fmt.Errorf("%s asks for %s: %v: %w", host, name, addrs, err)
		}
	}
	st, err := n.Status(ctx)
	if err == nil && len(st.Services) != s.size.real {
		err = fmt.Errorf("%s follows %d services, not %d", host, len(st.Services), s.size.real)
	}
	if err == nil {
		// The proxy gives memory back some seconds after it was busy.
		err = sleep(ctx, s.size.settle+5*time.Second)
	}
	if err != nil {
		return 0, err
	}
	bytes, err := resident(n.Proxy.Pid())
	return float64(bytes) / (1 << 20), errors.Join(err, n.Proxy.Stop(10*time.Second))
}

func (s *stage) dial() dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.mesh.Host.DialContext(ctx, network, address)
	}
}
