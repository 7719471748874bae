package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/health"
	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// serveAPI puts the REST API before the parts.
func (p *plane) serveAPI() (err error) {
	p.api, err = api.New(api.Config{
		Mesh: p, Authority: authority{p}, Proxies: p, Trust: p, Cluster: cluster{p}, ConfigFile: p.file.status, Observed: observed{p},
		Token: p.token, Insecure: p.cfg.InsecureAPI, Version: p.cfg.Version, Started: p.started, Log: p.log.Named("api"),
	})
	return err
}

// Snapshot implements api.Mesh.
func (p *plane) Snapshot() api.Snapshot { return snapshot{p.store, p.store.State()} }

// Change implements api.Mesh.
func (p *plane) Change(ctx context.Context, edits []policy.Edit, dryRun bool) (policy.Outcome, error) {
	return p.store.Change(ctx, edits, dryRun)
}

// History implements api.Mesh.
func (p *plane) History(ctx context.Context, before int64, limit int) ([]policy.Revision, error) {
	return p.store.History(ctx, before, limit)
}

// Revision implements api.Mesh.
func (p *plane) Revision(ctx context.Context, revision int64) (policy.Revision, error) {
	return p.store.Revision(ctx, revision)
}

// Between implements api.Mesh.
func (p *plane) Between(ctx context.Context, from, to int64) ([]policy.Difference, error) {
	return p.store.Between(ctx, from, to)
}

// Rollback implements api.Mesh.
func (p *plane) Rollback(ctx context.Context, revision int64, dryRun bool) (policy.Outcome, error) {
	return p.store.Rollback(ctx, revision, dryRun)
}

// Touched implements api.Mesh: it shows publish the state as it would be.
func (p *plane) Touched(differences []policy.Difference) []api.ProxyName {
	then, change := p.view.foresee(differences)
	out := []api.ProxyName{}
	for _, f := range p.pub.Foretell(change, then) {
		out = append(out, api.ProxyName{ID: f.ID, Namespace: f.Service.Namespace, ServiceName: f.Service.Name})
	}
	return out
}

// Health implements api.Mesh.
func (p *plane) Health(name policy.ServiceName, id string) (api.EndpointHealth, bool) {
	endpoints := p.store.Endpoints(name)
	i := slices.IndexFunc(endpoints, func(e store.Endpoint) bool { return e.ID == id })
	if i < 0 {
		return api.EndpointHealth{}, false
	}
	out := api.EndpointHealth{Namespace: name.Namespace, ServiceName: name.Name, ID: id, Status: endpoints[i].Status}
	st, checked := p.health.Status(name, id)
	out.History = p.checks(name, id, st.History)
	if checked {
		out.Checked, out.Since, out.NextCheck = true, unix(st.Since), unix(st.Next)
	}
	return out, true
}

// Proxies implements api.Proxies: those that are connected here, and what the
// store knows of the others.
func (p *plane) Proxies() []api.ProxyStatus {
	known := p.pub.Proxies()
	out := make([]api.ProxyStatus, 0, len(known))
	here := make(map[string]bool, len(known))
	for i := range known {
		here[known[i].ID] = true
		out = append(out, p.viewProxy(&known[i]))
	}
	out = append(out, p.elsewhere(here)...)
	slices.SortStableFunc(out, compareProxies)
	return out
}

func (p *plane) viewProxy(k *publish.ProxyStatus) api.ProxyStatus {
	s := api.ProxyStatus{
		ID: k.ID, Namespace: k.Service.Namespace, ServiceName: k.Service.Name, Version: k.Version, Control: p.cfg.name(),
		Addresses: make([]string, len(k.Addresses)), ConnectedAt: unix(k.ConnectedAt), LastSeen: unix(k.LastSeen), Subscribed: k.Subscribed,
		Resources: make([]api.ResourceState, len(k.Types)), State: api.Current,
		ConnectedTo: k.Report.Control, MemoryBytes: k.Report.ResidentBytes, CertificateExpires: unix(k.Report.CertificateExpires),
		CertificateBegins: unix(k.Report.CertificateBegins), CertificateSerial: k.Report.CertificateSerial,
	}
	for j, a := range k.Addresses {
		s.Addresses[j] = a.String()
	}
	if !k.InSync() || !k.Attached {
		s.State = api.Behind
	}
	for j, t := range k.Types {
		s.Resources[j] = api.ResourceState{Type: t.Type, Version: fmt.Sprint(t.Acked), Refused: t.Nack}
		if t.Nack != "" {
			s.State = api.Refusing
		}
	}
	if k.ClockSkew != nil {
		skew := k.ClockSkew.Round(time.Millisecond).Seconds()
		s.ClockSkew = &skew
	}
	s.SetFigures(k.Figures)
	return s
}

// authority is the certificate authority as the API wants it.
type authority struct{ p *plane }

func (a authority) RootPEM() []byte { return a.p.ca.RootPEM() }

func (a authority) IssueForCSR(name policy.ServiceName, csr []byte) ([]byte, error) {
	return a.p.ca.IssueForCSR(name, csr)
}

func (a authority) IssueWithKey(name policy.ServiceName) (keyPEM, chainPEM []byte, err error) {
	chainPEM, keyPEM, err = a.p.ca.IssueWithKey(name)
	return keyPEM, chainPEM, asConflict(err)
}

func (a authority) CreateToken(ctx context.Context, name policy.ServiceName, ttl time.Duration, uses int) (policy.JoinToken, string, error) {
	t, text, err := a.p.ca.CreateToken(ctx, name, ttl, uses)
	return t, text, asConflict(err)
}

func (a authority) Tokens(ctx context.Context) ([]policy.JoinToken, error) {
	return a.p.store.Tokens(ctx)
}

func (a authority) RevokeToken(ctx context.Context, id string) error {
	return a.p.store.RevokeToken(ctx, id)
}

// attach takes a proxy and its endpoints in, under a lease.
func (p *plane) attach(ctx context.Context, hello publish.Hello) (publish.Lease, error) {
	now := unix(time.Now())
	endpoints := make([]policy.Endpoint, len(hello.Endpoints))
	for i, t := range hello.Endpoints {
		e := t.Endpoint
		e.Status, e.LastSeen = p.statusOf(hello.ProxyID, &e), now
		if problems := e.Validate(); len(problems) > 0 {
			return nil, status.Errorf(codes.InvalidArgument, "endpoint %q: %v", e.ID, problems)
		}
		endpoints[i] = e
	}
	l, err := p.store.Attach(ctx, store.Proxy{ID: hello.ProxyID, Service: hello.Service, Addresses: hello.Addresses, Version: hello.Version, Control: p.cfg.name(), Since: now}, endpoints)
	if err != nil {
		return nil, err
	}
	return &lease{l: l, store: p.store, endpoints: endpoints}, nil
}

// statusOf is what an endpoint is to be taken for that a proxy brings: a proxy
// that comes from another control plane does not make its app healthy. Without
// health checks nobody would make it so again.
func (p *plane) statusOf(proxyID string, e *policy.Endpoint) string {
	st := p.store.State()
	s := st.Services.Get(e.Service())
	if s == nil || !st.Settings.LoadBalancing.HealthCheck.Enabled {
		return policy.Healthy
	}
	for i := range s.Endpoints {
		if was := &s.Endpoints[i]; was.ID == e.ID && was.ProxyID == proxyID && was.Addr() == e.Addr() {
			return was.Status
		}
	}
	return policy.Healthy
}

// lease is a proxy's lease: its messages show that its endpoints are there.
type lease struct {
	l         *store.Lease
	store     *store.Store
	endpoints []policy.Endpoint
}

func (l *lease) TTL() time.Duration { return l.l.TTL() }

func (l *lease) KeepAlive(ctx context.Context) error {
	err := l.l.KeepAlive(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", publish.ErrLeaseLost, err)
	}
	now := unix(time.Now())
	for i := range l.endpoints {
		e := &l.endpoints[i]
		l.store.Seen(e.Namespace, e.ServiceName, e.ID, now)
	}
	return err
}

func (l *lease) Close(ctx context.Context) error { return l.l.Close(ctx) }

func (p *plane) healthConfig() health.Config {
	checks := func() *policy.LoadBalancing { s := p.view.settings(); return &s.LoadBalancing }
	return health.Config{
		Targets: p.view.targets, Report: p.report,
		Enabled:  func() bool { return checks().HealthCheck.Enabled },
		Interval: func() time.Duration { return duration(checks().HealthCheck.Interval) },
		Timeout:  func() time.Duration { return duration(checks().HealthCheck.Timeout) },
		Thresholds: func() health.Thresholds {
			c := &checks().HealthCheck
			return health.Thresholds{Unhealthy: c.UnhealthyThreshold, Healthy: c.HealthyThreshold}
		},
		TLS: func() *tls.Config { return p.ca.ClientTLS(policy.ServiceName{}) },
		VerifyPeer: func(state tls.ConnectionState, want policy.ServiceName) error {
			got, err := p.ca.PeerOf(state)
			if err == nil && got != want {
				err = fmt.Errorf("the workload there is %s, not %s", got, want)
			}
			return err
		},
		Log: p.log.Named("health"),
	}
}

// report stores what a check found.
func (p *plane) report(ctx context.Context, t policy.Target, r health.Result) {
	p.store.Seen(t.Namespace, t.ServiceName, t.ID, unix(r.At))
	if !r.Changed {
		return
	}
	word := policy.Healthy
	if !r.Healthy {
		word = policy.Unhealthy
	}
	p.log.Info("endpoint is "+word, zap.Stringer("service", t.Service()), zap.String("endpoint", t.ID), zap.String("check", r.Detail))
	if err := p.turn(ctx, &t, word); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrNotFound) {
		p.log.Warn("an endpoint's state could not be stored; the next check tries again", zap.String("endpoint", t.ID), zap.Error(err))
	}
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
