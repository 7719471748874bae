// Package meshlab runs a whole mesh in network namespaces: control plane,
// redirection, sidecars and apps, as the programs a user would start. What is
// sent through it, and what that shows, it leaves to the demo and the tests.
package meshlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/netlab"
)

// ProxyUID is the unprivileged user under which sidecars run, where there are
// other users than root.
const ProxyUID = 15001

// Config says where the programs are and who hears of progress.
type Config struct {
	Bin       string                           // directory with weir, weir-proxy and weir-init
	Control   []string                         // more flags for weir control
	Init      []string                         // more flags for weir-init, on every host
	Planes    int                              // control planes; 0 is one
	Etcd      int                              // members of an etcd cluster that they share; 0 is the embedded store
	EtcdFlags []string                         // more flags for etcd
	Progress  func(format string, args ...any) // nil hears nothing
}

// Mesh is a running mesh. Close ends it.
type Mesh struct {
	Lab     *netlab.Lab
	Dir     string       // everything it writes
	Control *Process     // weir control, the first of Planes
	Host    *netlab.Host // where it runs
	API     *api.Client
	Planes  []*Plane
	Etcd    []*Etcd // empty with the embedded store

	cfg Config

	mu        sync.Mutex // guards what follows
	processes []*Process
	nodes     map[string]*Node
}

// Start makes the namespaces and starts the control plane. What a failed Start
// had made is removed.
func Start(ctx context.Context, cfg Config) (_ *Mesh, err error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string, ...any) {}
	}
	m := &Mesh{cfg: cfg, nodes: map[string]*Node{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if m.Dir, err = os.MkdirTemp("", "weir-"); err != nil {
		return m, err
	}
	// Sidecars run as another user and must get at their program and token.
	if err := os.Chmod(m.Dir, 0o711); err != nil {
		return m, err
	}
	if err := m.copyPrograms(); err != nil {
		return m, err
	}
	m.cfg.Progress("network namespaces, joined by a bridge")
	if m.Lab, err = netlab.Open(ctx, netlab.Options{}); err != nil {
		return m, err
	}
	if err := m.writeResolvConf(); err != nil {
		return m, err
	}
	if cfg.Etcd > 0 {
		m.cfg.Progress("etcd, %d members", cfg.Etcd)
		if err := m.startEtcd(ctx, cfg.Etcd); err != nil {
			return m, err
		}
	}
	if _, err := m.addPlane("control"); err != nil {
		return m, err
	}
	m.Host = m.Planes[0].Host
	m.cfg.Progress("weir control, its store in %s", m.Planes[0].dataDir)
	if err := m.StartControl(ctx); err != nil {
		return m, err
	}
	for i := 1; i < cfg.Planes; i++ {
		p, err := m.addPlane(fmt.Sprintf("control%d", i+1))
		if err != nil {
			return m, err
		}
		if err := p.Start(ctx); err != nil {
			return m, err
		}
	}
	return m, nil
}

// copyPrograms puts the programs where every user may run them.
func (m *Mesh) copyPrograms() error {
	bin := filepath.Join(m.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"weir", "weir-proxy", "weir-init"} {
		from := filepath.Join(m.cfg.Bin, name)
		if err := copyFile(from, filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("%w (run `make build` first)", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Program is the path of one of weir's programs.
func (m *Mesh) Program(name string) string { return filepath.Join(m.Dir, "bin", name) }

// resolvConf is what programs in the namespaces see as /etc/resolv.conf: a
// resolver at the bridge, where nothing answers, so that only the mesh's names
// exist.
func (m *Mesh) resolvConf() string { return filepath.Join(m.Dir, "resolv.conf") }

func (m *Mesh) writeResolvConf() error {
	text := fmt.Sprintf("nameserver %s\noptions timeout:1 attempts:2\n", m.Lab.Bridge().Addr4())
	return os.WriteFile(m.resolvConf(), []byte(text), 0o644)
}

// ControlAddr is where proxies find the control planes, as --control takes it.
func (m *Mesh) ControlAddr() string {
	var at []string
	for _, p := range m.Planes {
		at = append(at, p.GRPCAddr())
	}
	return strings.Join(at, ",")
}

// StartControl starts the first control plane, for the first time or again
// after its end, and waits until its API answers.
func (m *Mesh) StartControl(ctx context.Context) error {
	err := m.Planes[0].Start(ctx)
	m.Control, m.API = m.Planes[0].Process, m.Planes[0].API
	return err
}

// SetControl replaces the further flags of weir control, for its next start.
func (m *Mesh) SetControl(flags ...string) { m.cfg.Control = flags }

// TokenFile is the admin token's file.
func (m *Mesh) TokenFile() string { return m.Planes[0].TokenFile() }

// await asks until the answer is good, p ends or ctx does.
func (m *Mesh) await(ctx context.Context, p *Process, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		var ended <-chan struct{}
		if p != nil {
			ended = p.Done()
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %w\n%s", what, p.Err(), p.Tail())
		case <-ctx.Done():
			if p != nil {
				return fmt.Errorf("%s does not answer: %w\n%s", what, err, p.Tail())
			}
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}

// Await asks until the answer is good, at most 30 s.
func (m *Mesh) Await(ctx context.Context, what string, ask func(context.Context) error) error {
	return m.await(ctx, nil, what, ask)
}

// Close ends all programs, the sidecars by a drain, and removes everything.
func (m *Mesh) Close() error {
	m.mu.Lock()
	processes := m.processes
	m.processes = nil
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() { p.Kill() })
	}
	wg.Wait()
	var errs []error
	for _, n := range m.nodes {
		errs = append(errs, n.removeShortcut())
	}
	if m.Lab != nil {
		errs = append(errs, m.Lab.Close())
	}
	if m.Dir != "" {
		errs = append(errs, os.RemoveAll(m.Dir))
	}
	return errors.Join(errs...)
}

// Dump writes the last lines of every program, for a test that failed.
func (m *Mesh) Dump(logf func(format string, args ...any)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.processes {
		logf("%s:\n%s", p.Name, p.Tail())
	}
}

// Allow adds a security rule from one service to another, both in the namespace
// "default" or as "namespace/name"; "*" stands for everybody.
func (m *Mesh) Allow(ctx context.Context, from, to string) (id string, err error) {
	src, dst := names(from), names(to)
	return m.API.AddSecurityRule(ctx, policy.SecurityRule{
		SourceNamespace: src.Namespace, SourceService: src.Name, DestinationNamespace: dst.Namespace, DestinationService: dst.Name,
		AllowedMethods: policy.DefaultMethods(),
	})
}

func names(s string) policy.ServiceName {
	if s == policy.Any {
		return policy.ServiceName{Namespace: policy.Any, Name: policy.Any}
	}
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		return policy.ServiceName{Namespace: "default", Name: s}
	}
	return policy.ServiceName{Namespace: ns, Name: name}
}
