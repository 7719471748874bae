package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// settings switch on what the peers do not do: a limit of requests, with the
// fields that it adds to each answer, beside what is on by default (metrics,
// circuits, retries, timeouts, p2c_ewma). Health checks are the control plane's
// work and would only be noise.
const settings = `{
  "security": {"rate_limiting": {"enabled": true, "default_limit": 10000000, "window": 60}},
  "load_balancing": {"health_check": {"enabled": false}}
}`

// addWeir puts weir on the stage: rules, a service outside the mesh and one in
// it, a sidecar beside the client and one beside the far app.
func (s *stage) addWeir(ctx context.Context) error {
	if _, err := s.api().UpdateSettings(ctx, json.RawMessage(settings)); err != nil {
		return err
	}
	if err := s.registerPlain(ctx); err != nil {
		return err
	}
	if err := s.addRules(ctx, "plain"); err != nil {
		return err
	}
	return s.addSidecars(ctx, sidecars{name: "weir", front: "front", meshed: "meshed"})
}

// shortcutPeer is weir with the short cut, as -peer names it.
const shortcutPeer = "weir-shortcut"

// addShortcut adds weir once more, with the short cut between app and sidecar.
func (s *stage) addShortcut(ctx context.Context) error {
	return s.addSidecars(ctx, sidecars{name: shortcutPeer, front: "front-short", meshed: "meshed-short", init: []string{"--shortcut", "on"}})
}

// beforePeer is weir as it was before a change: with the proxy that -before names.
const beforePeer = "weir-before"

// addBefore adds weir once more, with another program as its proxy.
func (s *stage) addBefore(ctx context.Context, program string) error {
	return s.addSidecars(ctx, sidecars{name: beforePeer, front: "front-before", meshed: "meshed-before", program: program})
}

// isWeir tells weir in another form from its peers.
func isWeir(subject string) bool {
	return subject == "weir" || subject == shortcutPeer || subject == beforePeer
}

// sidecars are a sidecar beside the client and one beside an app of its own.
type sidecars struct {
	name          string   // of the subject
	front, meshed string   // the services that they are
	init          []string // flags of weir-init
	program       string   // in the place of weir-proxy
}

// addSidecars adds a subject.
func (s *stage) addSidecars(ctx context.Context, as sidecars) error {
	sub := &subject{name: as.name}
	var err error
	if sub.client, err = s.host("c-" + as.name); err != nil {
		return err
	}
	if sub.far, err = s.host("s-" + as.name); err != nil {
		return err
	}
	if sub.app, err = s.startBackend(ctx, sub.far, meshPort); err != nil {
		return err
	}
	for _, caller := range []string{as.front, "shaker"} {
		if _, err := s.mesh.Allow(ctx, caller, as.meshed); err != nil {
			return err
		}
	}
	if err := s.addRules(ctx, as.meshed); err != nil {
		return err
	}
	if sub.shaker, err = s.issue(ctx); err != nil {
		return err
	}
	if err := s.joinWeir(ctx, sub, as); err != nil {
		return err
	}
	s.subjects = append(s.subjects, sub)
	return s.awaitWeir(ctx, sub)
}

func (s *stage) joinWeir(ctx context.Context, sub *subject, as sidecars) error {
	err := onCPU(s.cpu, s.nice, func() error {
		port := func(i int, protocol string) string { return strconv.Itoa(meshPort+i) + "/" + protocol }
		far := meshlab.Workload{Host: "s-" + sub.name, Service: as.meshed, Init: as.init, Program: as.program, Ports: []string{port(0, "http"), port(1, "tcp"), port(2, "tcp"), port(5, "grpc")}}
		if err := s.mesh.Join(ctx, sub.far, far); err != nil {
			return err
		}
		near := meshlab.Workload{Host: "c-" + sub.name, Service: as.front, Init: as.init, Program: as.program, Proxy: []string{"--access-log", s.accessLog(sub.name)}}
		return s.mesh.Join(ctx, sub.client, near)
	})
	if err != nil {
		return err
	}
	sub.near, sub.behind = sub.client.Proxy, sub.far.Proxy
	sub.restart = func(ctx context.Context) error {
		err := errors.Join(sub.near.Stop(10*time.Second), sub.behind.Stop(10*time.Second))
		if err != nil {
			return err
		}
		err = onCPU(s.cpu, s.nice, func() error { return errors.Join(sub.far.StartProxy(ctx), sub.client.StartProxy(ctx)) })
		if err != nil {
			return err
		}
		sub.near, sub.behind = sub.client.Proxy, sub.far.Proxy
		return s.awaitWeir(ctx, sub)
	}
	return nil
}

// accessLog is a file that the sidecar's user may write.
func (s *stage) accessLog(subject string) string {
	return filepath.Join(s.mesh.Dir, "proxy-c-"+subject, "access.log")
}

func (s *stage) registerPlain(ctx context.Context) error {
	for i, protocol := range []string{"http", "tcp", "tcp", "http", "http2", "grpc"} {
		e := policy.DefaultEndpoint()
		e.ID, e.ServiceName, e.Namespace = "plain-"+strconv.Itoa(i), "plain", "default"
		e.IP, e.Port, e.Protocol = s.server.Addr4().String(), plainPort+i, protocol
		if err := s.api().Register(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// addRules gives services rules that are looked at for every request and match
// none.
func (s *stage) addRules(ctx context.Context, services ...string) error {
	for _, name := range services {
		r := policy.DefaultTrafficRule()
		r.MatchHeaders, r.DestinationSubset = map[string]string{"version": "beta"}, "v2"
		if _, err := s.api().AddTrafficRule(ctx, policy.ServiceName{Namespace: "default", Name: name}, r); err != nil {
			return err
		}
	}
	return nil
}

// issue gets a certificate for the client of the handshakes.
func (s *stage) issue(ctx context.Context) (clientCert, error) {
	c, err := s.api().Issue(ctx, policy.ServiceName{Namespace: "default", Name: "shaker"}, nil)
	if err != nil {
		return clientCert{}, err
	}
	out := clientCert{cert: filepath.Join(s.dir, "shaker-cert.pem"), key: filepath.Join(s.dir, "shaker-key.pem"), alpn: "weir"}
	return out, errors.Join(os.WriteFile(out.cert, []byte(c.Certificate), 0o600), os.WriteFile(out.key, []byte(c.PrivateKey), 0o600))
}

// awaitWeir waits until the sidecar does all that is to be measured: the limit
// is applied, and the far endpoints are called with mTLS.
func (s *stage) awaitWeir(ctx context.Context, sub *subject) error {
	return s.mesh.Await(ctx, "weir's sidecars", func(ctx context.Context) error {
		for _, to := range []string{s.server.Join(plainPort), sub.far.Join(meshPort)} {
			h, err := get(ctx, sub.client, to)
			if err != nil {
				return err
			}
			if h.Get("RateLimit") == "" || h.Get("X-Request-Id") == "" {
				return fmt.Errorf("%s: the rate limit or the request id is not in force: %v", to, h)
			}
		}
		st, err := sub.client.Status(ctx)
		if err != nil {
			return err
		}
		meshed := 0
		for _, svc := range st.Services {
			for _, e := range svc.Endpoints {
				if e.MTLS {
					meshed++
				}
			}
		}
		if meshed != 4 {
			return fmt.Errorf("%d of 4 endpoints are called with mTLS", meshed)
		}
		return nil
	})
}

func get(ctx context.Context, from *meshlab.Node, to string) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to+"/", nil)
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s (%s)", to, resp.Status, resp.Header.Get("Weir-Error"))
	}
	return resp.Header, nil
}

// setAccessLog switches the log and waits until the sidecar has heard of it.
func (s *stage) setAccessLog(ctx context.Context, on bool) error {
	patch := json.RawMessage(fmt.Sprintf(`{"observability": {"access_logging": %t}}`, on))
	if _, err := s.api().UpdateSettings(ctx, patch); err != nil {
		return err
	}
	client := s.subject("weir").client
	return s.mesh.Await(ctx, "the access log", func(ctx context.Context) error {
		before, err := os.Stat(s.accessLog("weir"))
		if err != nil {
			return err
		}
		if _, err := get(ctx, client, s.server.Join(plainPort)); err != nil {
			return err
		}
		// Lines are written in batches: this one by then.
		if err := sleep(ctx, 300*time.Millisecond); err != nil {
			return err
		}
		after, err := os.Stat(s.accessLog("weir"))
		if err != nil {
			return err
		}
		if on != (after.Size() > before.Size()) {
			return fmt.Errorf("access_logging is not yet %t", on)
		}
		return nil
	})
}

func (s *stage) subject(name string) *subject {
	for _, sub := range s.subjects {
		if sub.name == name {
			return sub
		}
	}
	return nil
}

// addServices registers n services of one endpoint each and gives the virtual
// addresses at which the sidecar's app reaches them.
func (s *stage) addServices(ctx context.Context, n int) ([]string, error) {
	var wg sync.WaitGroup
	errs := make([]error, n)
	slots := make(chan struct{}, 16)
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			e := policy.DefaultEndpoint()
			e.ID, e.ServiceName, e.Namespace = "only", "scale-"+strconv.Itoa(i), "default"
			e.IP, e.Port = s.server.Addr4().String(), scalePort
			errs[i] = s.api().Register(ctx, e)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	all, err := s.api().Services(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, svc := range all {
		if strings.HasPrefix(svc.ServiceName, "scale-") {
			out = append(out, svc.VirtualIPv4+":"+strconv.Itoa(scalePort))
		}
	}
	if len(out) != n {
		return nil, fmt.Errorf("%d of %d services have a virtual address", len(out), n)
	}
	return out, nil
}
