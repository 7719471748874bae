package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

const (
	// freshWithin bounds how long a read waits for the store to say what is
	// newest; then it is answered from what is known.
	freshWithin = time.Second
	// openAgain is the wait between two attempts to open a store that is away.
	openAgain = 2 * time.Second
)

// openStore opens the store. An etcd cluster that is away is waited for: at
// the boot of a machine, or of all of them, the order of things is not known.
// What waiting does not heal is an error at once.
func openStore(ctx context.Context, cfg *Config) (*store.Store, error) {
	sc := store.Config{
		DataDir: filepath.Join(cfg.DataDir, "etcd"), Endpoints: cfg.Store, Prefix: cfg.StorePrefix,
		Access: store.Access{CAFile: cfg.StoreCAFile, CertFile: cfg.StoreCertFile, KeyFile: cfg.StoreKeyFile, UserFile: cfg.StoreUserFile},
		Log:    cfg.Log.Named("store"),
	}
	last := ""
	for {
		st, err := store.Open(ctx, sc)
		if err == nil {
			if last != "" {
				cfg.Log.Info("the store answers")
			}
			return st, nil
		}
		if len(cfg.Store) == 0 || !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			return nil, fmt.Errorf("--store: %w", err)
		}
		if text := err.Error(); text != last {
			last = text
			cfg.Log.Warn("waiting for the store (--store); nothing is served before it answers", zap.Error(err))
			cfg.notify("STATUS=waiting for the store: " + text)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(openAgain):
		}
	}
}

// name is by which the others know this control plane.
func (c *Config) name() string {
	host, _ := os.Hostname() // without one, the address is left to tell them apart
	return cmp.Or(c.Name, host, c.GRPCAddr)
}

// address is where proxies find this control plane, as far as it knows: a port
// on all addresses is told with the first of --host, or else the machine's name.
func (c *Config) address(grpc net.Addr) string {
	host, port, err := net.SplitHostPort(grpc.String())
	if err != nil {
		return grpc.String()
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		machine, _ := os.Hostname()
		host = machine
		if len(c.Hosts) > 0 {
			host = c.Hosts[0]
		}
	}
	return net.JoinHostPort(host, port)
}

// takePart makes this control plane one of those that share the store. The one
// that leads checks health and marks endpoints that have a proxy; what it finds
// is in the store, where all see it.
func (p *plane) takePart(ctx context.Context) error {
	return p.store.TakePart(ctx, p.self, func(ctx context.Context) error {
		p.leading.Store(true)
		defer p.leading.Store(false)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.health.Run(ctx) })
		g.Go(func() error { return p.markMeshed(ctx) })
		g.Go(func() error { return p.forgetChecks(ctx) })
		g.Go(func() error { return p.keepTrust(ctx) })
		return g.Wait()
	})
}

// comeBack is how long a control plane that starts keeps up the leases of the
// proxies it had, in which they find it again: their back-off is 5 s at most, and
// two thousand handshakes at once are another five on two CPUs.
const comeBack = 5 * time.Second

// settling is how long a control plane that finds nobody there says nothing of what
// proxies know: comeBack, and time for them to attach.
const settling = comeBack + 3*time.Second

// settledAt tells until when proxies that come know more than the store does. A
// cluster of etcd goes on when all control planes are away, and ends the leases of
// all proxies. The embedded one was away itself.
func (p *plane) settledAt(ctx context.Context) time.Time {
	if len(p.cfg.Store) == 0 {
		return time.Time{}
	}
	ctx, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	members, _ := p.store.Members(ctx) // without an answer there is nobody
	for _, m := range members {
		up := time.Since(time.UnixMilli(int64(m.Since * 1000)))
		if m.Name != p.cfg.name() && up > settling && p.store.State().Proxies.Len() > 0 {
			return time.Time{} // it has kept the leases up
		}
	}
	return time.Now().Add(settling)
}

// awaitProxies keeps up the leases of the proxies that were attached here, when
// the control plane starts and once more.
func (p *plane) awaitProxies(ctx context.Context) {
	for _, wait := range []time.Duration{0, comeBack} {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := p.store.Prolong(ctx, p.cfg.name()); err != nil && ctx.Err() == nil {
			p.log.Warn("the leases of the proxies that were attached here are not prolonged; those that are late are missing for a while", zap.Error(err))
		}
	}
}

// markAgain is how often what could not be marked is tried again.
const markAgain = 10 * time.Second

// markMeshed tells the store which endpoints have a proxy beside them, so that a
// control plane that starts while the proxy is away keeps their callers to mTLS.
func (p *plane) markMeshed(ctx context.Context) error {
	tick := time.NewTicker(markAgain)
	defer tick.Stop()
	for {
		for _, e := range p.view.unmarked() {
			err := p.store.SetMeshed(ctx, e.Namespace, e.ServiceName, e.ID)
			if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrNotFound) {
				p.log.Warn("that an endpoint has a proxy could not be stored; trying again", zap.String("endpoint", e.ID), zap.Error(err))
				break
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.unmarked:
		case <-tick.C:
		}
	}
}

// self is what this control plane tells of itself.
func (p *plane) self() store.Member {
	return store.Member{
		Name: p.cfg.name(), Address: p.cfg.address(p.grpcAddr), Version: p.cfg.Version, Since: unix(p.started),
		Proxies: p.pub.Connected(), Figures: p.pub.Totals(), Refused: p.refused(), Circuits: p.toldCircuits(),
		Demands: p.shares.totals(), Rotation: p.toldRotation(),
	}
}

// maxRefused bounds what a control plane tells the others of refusals: a change
// that one proxy refuses is refused by many, for one reason.
const (
	maxRefused = 64
	maxReason  = 300 // bytes
)

func (p *plane) refused() []store.Refusal {
	var out []store.Refusal
	known := p.pub.Proxies()
	for i := range known {
		for _, t := range known[i].Types {
			if t.Nack == "" {
				continue
			}
			if len(out) == maxRefused {
				return out
			}
			reason := t.Nack
			if len(reason) > maxReason {
				reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
			}
			out = append(out, store.Refusal{Proxy: known[i].ID, Type: t.Type, Reason: reason})
		}
	}
	return out
}

// cluster is the control planes of the store as the API wants them.
type cluster struct{ p *plane }

// Fresh implements api.Cluster.
func (c cluster) Fresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	return c.p.store.Sync(ctx)
}

// Members implements api.Cluster.
func (c cluster) Members(ctx context.Context) ([]api.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	known, err := c.p.store.Members(ctx)
	out := make([]api.Member, len(known))
	for i, m := range known {
		out[i] = api.Member{Name: m.Name, Address: m.Address, Version: m.Version, Since: m.Since, Proxies: m.Proxies, Leader: m.Leader}
	}
	if t := c.p.store.Trouble(); t != nil {
		err = fmt.Errorf("since %s: %w", t.Since.UTC().Format(time.RFC3339), t.Err)
	}
	return out, err
}

// Figures implements api.Cluster.
func (c cluster) Figures(ctx context.Context) api.ControlMetrics {
	ctx, cancel := context.WithTimeout(ctx, freshWithin)
	defer cancel()
	members, _ := c.p.store.Members(ctx) // those known last, when the store does not answer
	m := api.ControlMetrics{Name: c.p.cfg.name(), Leading: c.p.leading.Load(), Members: len(members), RefusedJoins: c.p.ca.Refused()}
	c.p.addCertificates(&m)
	if t := c.p.store.Trouble(); t != nil {
		m.StoreAway = time.Since(t.Since).Seconds()
	}
	return m
}

// Totals implements api.Proxies: what the proxies of all control planes
// counted. Those of the others are as of a few seconds ago.
func (p *plane) Totals() policy.Figures {
	sum := p.pub.Totals()
	self := p.self()
	for _, m := range p.store.KnownMembers() {
		if m.Name != self.Name || m.Since != self.Since {
			sum = sum.Add(m.Figures)
		}
	}
	return sum
}

// elsewhere lists the proxies that are attached to other control planes: what
// the store knows of them, and what they refused as of a few seconds ago.
func (p *plane) elsewhere(here map[string]bool) []api.ProxyStatus {
	var out []api.ProxyStatus
	refused := p.refusedElsewhere()
	for known := range p.store.State().Proxies.All() {
		id := known.ID
		if here[id] {
			continue
		}
		s := api.ProxyStatus{
			ID: id, Namespace: known.Service.Namespace, ServiceName: known.Service.Name, Version: known.Version, Control: known.Control,
			Addresses: make([]string, len(known.Addresses)), Resources: refused[id], ConnectedAt: known.Since, State: api.Elsewhere,
		}
		if known.Control == p.cfg.name() {
			s.State = api.Away
		}
		for i, a := range known.Addresses {
			s.Addresses[i] = a.String()
		}
		out = append(out, s)
	}
	return out
}

func (p *plane) refusedElsewhere() map[string][]api.ResourceState {
	out := map[string][]api.ResourceState{}
	for _, m := range p.store.KnownMembers() {
		for _, r := range m.Refused {
			out[r.Proxy] = append(out[r.Proxy], api.ResourceState{Type: r.Type, Refused: r.Reason})
		}
	}
	return out
}

func compareProxies(a, b api.ProxyStatus) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ServiceName, b.ServiceName), strings.Compare(a.ID, b.ID))
}
