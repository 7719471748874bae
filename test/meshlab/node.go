package meshlab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/netlab"
)

// Workload describes a host of the mesh: one app with its sidecar.
type Workload struct {
	Host      string // the namespace's short name
	Service   string // in the namespace "default" unless Namespace says otherwise
	Namespace string
	Ports     []string // as for weir-proxy --app-port
	Labels    []string // as for weir-proxy --label
	Proxy     []string // more flags for weir-proxy
	Init      []string // more flags for weir-init
	UIDMode   bool     // the proxy is told by its uid, and has no capability
	Program   string   // in the place of the mesh's weir-proxy
	Control   string   // as for weir-proxy --control, in the place of all control planes in order
}

// Node is a host with redirection and a sidecar.
type Node struct {
	*netlab.Host
	Proxy *Process

	mesh     *Mesh
	workload Workload
	http     *http.Client
}

// Bare adds a host without redirection or sidecar: the world outside the mesh.
func (m *Mesh) Bare(name string) (*Node, error) {
	h, err := m.Lab.Host(name)
	if err != nil {
		return nil, err
	}
	return m.node(h, Workload{Host: name}), nil
}

// NodeOn is a host of the lab, to run programs on.
func (m *Mesh) NodeOn(h *netlab.Host) *Node { return m.node(h, Workload{Host: h.Name()}) }

// ControlNode is the control plane's host, to run programs on.
func (m *Mesh) ControlNode() *Node { return m.NodeOn(m.Host) }

func (m *Mesh) node(h *netlab.Host, w Workload) *Node {
	n := &Node{Host: h, mesh: m, workload: w}
	n.http = &http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}, Timeout: 15 * time.Second}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes[w.Host] = n
	return n
}

// Join installs the redirection, makes a token and starts the sidecar; it
// returns when the sidecar is ready.
func (m *Mesh) Join(ctx context.Context, n *Node, w Workload) error {
	if w.Namespace == "" {
		w.Namespace = "default"
	}
	n.workload = w
	if err := n.installRules(ctx); err != nil {
		return err
	}
	token, err := m.API.CreateToken(ctx, n.Name(), time.Hour)
	if err != nil {
		return fmt.Errorf("%s: %w", w.Host, err)
	}
	if err := n.writeOwned("token", []byte(token.Token+"\n")); err != nil {
		return err
	}
	return n.StartProxy(ctx)
}

// Name is the service's name.
func (n *Node) Name() policy.ServiceName {
	return policy.ServiceName{Namespace: n.workload.Namespace, Name: n.workload.Service}
}

func (n *Node) installRules(ctx context.Context) error {
	args := slices.Concat([]string{"--netns", n.Path()}, n.mesh.cfg.Init, n.workload.Init)
	if n.workload.UIDMode {
		args = append(args, "--proxy-uid", strconv.Itoa(ProxyUID))
	}
	out, err := exec.CommandContext(ctx, n.mesh.Program("weir-init"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("weir-init in %s: %w\n%s", n.workload.Host, err, out)
	}
	return nil
}

// removeShortcut takes away what a namespace does not take with it when it goes.
func (n *Node) removeShortcut() error {
	if !slices.Contains(slices.Concat(n.mesh.cfg.Init, n.workload.Init), "--shortcut") {
		return nil
	}
	out, err := exec.Command(n.mesh.Program("weir-init"), "--netns", n.Path(), "--cleanup").CombinedOutput()
	if err != nil {
		return fmt.Errorf("weir-init --cleanup in %s: %w\n%s", n.workload.Host, err, out)
	}
	return nil
}

// stateDir belongs to the proxy's user.
func (n *Node) stateDir() string { return filepath.Join(n.mesh.Dir, "proxy-"+n.workload.Host) }

func (n *Node) writeOwned(name string, content []byte) error {
	dir := n.stateDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if !OtherUsers() {
		return nil
	}
	if err := os.Chown(dir, ProxyUID, ProxyUID); err != nil {
		return err
	}
	return os.Chown(path, ProxyUID, ProxyUID)
}

// OtherUsers tells whether there are other users than root, under which sidecars
// then run: not in a user namespace that knows only one.
func OtherUsers() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && bytes.Contains(b, []byte("4294967295"))
}

// StartProxy starts the sidecar, for the first time or again, and waits until
// it is ready.
func (n *Node) StartProxy(ctx context.Context) error {
	w := n.workload
	args := []string{
		"--control", cmp.Or(w.Control, n.mesh.ControlAddr()), "--service", w.Service, "--namespace", w.Namespace,
		"--token-file", filepath.Join(n.stateDir(), "token"), "--state-dir", n.stateDir(),
		"--resolv-conf", n.mesh.resolvConf(), "--advertise", n.Addr4().String(), "--drain-delay", "100ms", "--drain-timeout", "5s",
	}
	for _, p := range w.Ports {
		args = append(args, "--app-port", p)
	}
	for _, l := range w.Labels {
		args = append(args, "--label", l)
	}
	if w.UIDMode {
		args = append(args, "--mark", "none")
	}
	args = append(args, w.Proxy...)
	p, err := n.mesh.run(n.mesh.Command(context.Background(), n.Host, "setpriv", n.as(args)...), "proxy-"+w.Host)
	if err != nil {
		return err
	}
	n.Proxy = p
	return n.mesh.await(ctx, p, "the sidecar of "+w.Host, func(ctx context.Context) error {
		return n.admin(ctx, "/ready", "", nil)
	})
}

// as are setpriv's arguments: an unprivileged user with the one capability
// that marks need, or none in uid mode; in a user namespace root it stays.
func (n *Node) as(args []string) []string {
	var who []string
	if OtherUsers() {
		uid := strconv.Itoa(ProxyUID)
		who = []string{"--reuid", uid, "--regid", uid, "--clear-groups"}
		if !n.workload.UIDMode {
			who = append(who, "--inh-caps", "-all,+net_raw", "--ambient-caps", "-all,+net_raw")
		}
	}
	who = append(who, "--no-new-privs", cmp.Or(n.workload.Program, n.mesh.Program("weir-proxy")))
	return append(who, args...)
}

// admin asks the sidecar's admin port, and decodes the answer into v if given.
func (n *Node) admin(ctx context.Context, path, accept string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15000"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", accept)
	resp, err := n.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(body, v)
}

// ProxyMetrics are the sidecar's figures, as its /metrics gives them in JSON.
type ProxyMetrics struct {
	InboundRequests     uint64 `json:"inbound_requests"`
	OutboundRequests    uint64 `json:"outbound_requests"`
	RequestErrors       uint64 `json:"request_errors"`
	CircuitBreakerOpens uint64 `json:"circuit_breaker_opens"`
}

// Metrics asks the sidecar for its figures.
func (n *Node) Metrics(ctx context.Context) (ProxyMetrics, error) {
	var m ProxyMetrics
	return m, n.admin(ctx, "/metrics", "application/json", &m)
}

// Status asks the sidecar how it stands: services, endpoints, circuits.
func (n *Node) Status(ctx context.Context) (s ProxyStatus, err error) {
	return s, n.admin(ctx, "/status", "", &s)
}

// ProxyStatus is a sidecar's /status.
type ProxyStatus struct {
	Services map[string]struct {
		Strategy  string `json:"strategy"`
		UnderWay  int    `json:"under_way"` // requests, where there is a bound
		Waiting   int    `json:"waiting"`
		Endpoints []struct {
			ID      string `json:"id"`
			Address string `json:"address"`
			Circuit string `json:"circuit"`
			MTLS    bool   `json:"mtls"`
		} `json:"endpoints"`
	} `json:"services"`
	Control struct {
		Connected bool              `json:"connected"`
		Rejected  map[string]string `json:"rejected"`
	} `json:"control"`
}

// Start runs an app on the host, and waits until its port takes connections on
// loopback; port 0 waits for nothing.
func (n *Node) Start(ctx context.Context, name string, port int, program string, args ...string) (*Process, error) {
	p, err := n.mesh.start(n.Host, name, program, args...)
	if err != nil || port == 0 {
		return p, err
	}
	return p, n.mesh.await(ctx, p, name, func(ctx context.Context) error {
		c, err := n.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Output runs a program on the host to its end and gives what it printed.
func (n *Node) Output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := n.mesh.Command(ctx, n.Host, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}
