package meshlab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/test/netlab"
)

// Plane is one control plane, on a host of its own.
type Plane struct {
	Name    string
	Host    *netlab.Host
	Process *Process
	API     *api.Client // from that host

	mesh    *Mesh
	dataDir string
}

// addPlane makes the host of a control plane; Start starts it there.
func (m *Mesh) addPlane(name string) (*Plane, error) {
	h, err := m.Lab.Host(name)
	if err != nil {
		return nil, err
	}
	p := &Plane{Name: name, Host: h, mesh: m, dataDir: filepath.Join(m.Dir, name), API: &api.Client{
		BaseURL: "http://127.0.0.1:8080",
		HTTP:    &http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}, Timeout: 15 * time.Second},
	}}
	m.Planes = append(m.Planes, p)
	return p, nil
}

// GRPCAddr is where proxies find it.
func (p *Plane) GRPCAddr() string { return p.Host.Join(8081) }

// TokenFile is the admin token's file.
func (p *Plane) TokenFile() string { return filepath.Join(p.dataDir, "admin.token") }

// Run starts the control plane, for the first time or again after its end, and
// does not wait.
func (p *Plane) Run() error {
	args := []string{"control", "--data-dir", p.dataDir, "--http-addr", "127.0.0.1:8080", "--grpc-addr", p.GRPCAddr(), "--name", p.Name}
	if urls := p.mesh.EtcdURLs(); urls != "" {
		args = append(args, "--store", urls)
	}
	var err error
	p.Process, err = p.mesh.start(p.Host, p.Name, p.mesh.Program("weir"), append(args, p.mesh.cfg.Control...)...)
	return err
}

// Start is Run, and waits until the API answers.
func (p *Plane) Start(ctx context.Context) error {
	if err := p.Run(); err != nil {
		return err
	}
	return p.Await(ctx)
}

// Await waits until the API answers.
func (p *Plane) Await(ctx context.Context) error {
	return p.mesh.await(ctx, p.Process, "the control plane "+p.Name, func(ctx context.Context) error {
		token, err := os.ReadFile(p.TokenFile())
		if err != nil {
			return err
		}
		if text := strings.TrimSpace(string(token)); text != p.API.Token { // others may be reading it
			p.API.Token = text
		}
		_, err = p.API.Status(ctx)
		return err
	})
}

// Etcd is one member of an etcd cluster: Debian's etcd, on a host of its own.
type Etcd struct {
	Name    string
	Host    *netlab.Host
	Process *Process

	mesh *Mesh
	dir  string
}

// URL is where clients find it.
func (e *Etcd) URL() string { return "http://" + e.Host.Join(2379) }

// EtcdURLs are those of all members, for --store; "" without a cluster.
func (m *Mesh) EtcdURLs() string {
	var urls []string
	for _, e := range m.Etcd {
		urls = append(urls, e.URL())
	}
	return strings.Join(urls, ",")
}

// startEtcd makes a cluster of so many members.
func (m *Mesh) startEtcd(ctx context.Context, members int) error {
	for i := range members {
		name := fmt.Sprintf("etcd%d", i+1)
		h, err := m.Lab.Host(name)
		if err != nil {
			return err
		}
		m.Etcd = append(m.Etcd, &Etcd{Name: name, Host: h, mesh: m, dir: filepath.Join(m.Dir, name)})
	}
	for _, e := range m.Etcd {
		if err := e.Start(); err != nil {
			return err
		}
	}
	for _, e := range m.Etcd {
		if err := e.Await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the member, for the first time or again after its end, and does
// not wait: a first member has nobody to agree with.
func (e *Etcd) Start() error {
	var cluster []string
	for _, o := range e.mesh.Etcd {
		cluster = append(cluster, o.Name+"=http://"+o.Host.Join(2380))
	}
	args := []string{
		"--name", e.Name, "--data-dir", e.dir, "--log-level", "warn",
		"--listen-client-urls", e.URL() + ",http://127.0.0.1:2379", "--advertise-client-urls", e.URL(),
		"--listen-peer-urls", "http://" + e.Host.Join(2380), "--initial-advertise-peer-urls", "http://" + e.Host.Join(2380),
		"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-token", e.mesh.Lab.ID(),
	}
	var err error
	e.Process, err = e.mesh.start(e.Host, e.Name, "etcd", append(args, e.mesh.cfg.EtcdFlags...)...)
	return err
}

// Await waits until the member answers for a majority.
func (e *Etcd) Await(ctx context.Context) error {
	return e.mesh.await(ctx, e.Process, e.Name, func(ctx context.Context) error {
		_, err := e.Ctl(ctx, "get", "nothing")
		return err
	})
}

// Ctl runs etcdctl beside the member.
func (e *Etcd) Ctl(ctx context.Context, args ...string) (string, error) {
	n := &Node{Host: e.Host, mesh: e.mesh}
	return n.Output(ctx, "env", append([]string{"ETCDCTL_API=3", "etcdctl", "--command-timeout=2s"}, args...)...)
}
