package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/weir-mesh/weir/test/meshlab"
)

//go:embed peers
var peerFiles embed.FS

// peer is a proxy of others, in one way of tuning.
type peer struct {
	name    string
	program string
	config  string // below peers/: CONFIG-client.EXT and CONFIG-server.EXT
	ext     string
	big     bool                                  // HAProxy's buffers, which are the process's
	args    func(config string) []string          // of the program
	version func(program string) []string         // arguments that print it
	modules func() (directives string, err error) // nginx: what must be loaded
}

func peers(envoy string) []peer {
	haproxy := func(config string) []string { return []string{"-db", "-q", "-f", config} }
	nginx := func(config string) []string {
		return []string{"-c", config, "-p", filepath.Dir(config), "-e", "stderr"}
	}
	flag := func(f string) func(string) []string { return func(string) []string { return []string{f} } }
	return []peer{
		{name: "haproxy", program: "haproxy", config: "haproxy", ext: "cfg", args: haproxy, version: flag("-v")},
		{name: "haproxy-64k", program: "haproxy", config: "haproxy", ext: "cfg", big: true, args: haproxy, version: flag("-v")},
		{name: "nginx", program: "nginx", config: "nginx", ext: "conf", args: nginx, version: flag("-v"), modules: nginxModules},
		{name: "envoy", program: envoy, config: "envoy", ext: "yaml", args: func(config string) []string {
			return []string{"-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error"}
		}, version: flag("--version")},
	}
}

// redirected are the ports of a client's namespace that go to a peer, and where
// it listens; the second list are those of its far side.
var (
	redirectedPlain = map[int]int{plainPort: 16001, plainPort + 1: 16002, plainPort + 2: 16003, plainPort + 3: 16004, plainPort + 4: 16005, plainPort + 5: 16006}
	redirectedMesh  = map[int]int{meshPort: 16011, meshPort + 1: 16012, meshPort + 2: 16013, meshPort + 5: 16016}
	redirectedFar   = map[int]int{meshPort: 17001, meshPort + 1: 17002, meshPort + 2: 17003, meshPort + 5: 17006}
)

// addPeers starts the peers that are wanted and can be had.
func (s *stage) addPeers(ctx context.Context, o *options, logf func(string, ...any)) (absent []string, err error) {
	for _, p := range peers(o.envoy) {
		if len(o.peers) > 0 && !slices.Contains(o.peers, p.name) {
			continue
		}
		path, err := exec.LookPath(p.program)
		if err != nil {
			absent = append(absent, p.name+" ("+err.Error()+")")
			continue
		}
		p.program = path
		logf("%s", p.name)
		if err := s.addPeer(ctx, p); err != nil {
			return absent, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return absent, nil
}

func (s *stage) addPeer(ctx context.Context, p peer) error {
	sub := &subject{name: p.name, shaker: s.shakers}
	var err error
	if sub.client, err = s.host("c-" + p.name); err != nil {
		return err
	}
	if sub.far, err = s.host("s-" + p.name); err != nil {
		return err
	}
	if sub.app, err = s.startBackend(ctx, sub.far, meshPort); err != nil {
		return err
	}
	rules := outputRules(s.server.Addr4().String(), redirectedPlain)
	rules = append(rules, outputRules(sub.far.Addr4().String(), redirectedMesh)...)
	if err := redirect(ctx, sub.client, rules); err != nil {
		return err
	}
	if err := redirect(ctx, sub.far, preroutingRules(redirectedFar)); err != nil {
		return err
	}
	start := func(ctx context.Context) error {
		if sub.near, err = s.startPeer(ctx, p, sub, "client", sub.client, 16001); err != nil {
			return err
		}
		sub.behind, err = s.startPeer(ctx, p, sub, "server", sub.far, 17002)
		return err
	}
	sub.restart = func(ctx context.Context) error {
		if err := errors.Join(end(ctx, sub.near), end(ctx, sub.behind)); err != nil {
			return err
		}
		return start(ctx)
	}
	if err := start(ctx); err != nil {
		return err
	}
	s.subjects = append(s.subjects, sub)
	return nil
}

func outputRules(to string, ports map[int]int) (rules []string) {
	for port, listen := range ports {
		rules = append(rules, fmt.Sprintf("-t nat -A OUTPUT -p tcp -d %s --dport %d -m owner ! --uid-owner %d -j REDIRECT --to-ports %d", to, port, peerUID, listen))
	}
	slices.Sort(rules)
	return rules
}

func preroutingRules(ports map[int]int) (rules []string) {
	for port, listen := range ports {
		rules = append(rules, fmt.Sprintf("-t nat -A PREROUTING -p tcp --dport %d -j REDIRECT --to-ports %d", port, listen))
	}
	slices.Sort(rules)
	return rules
}

func redirect(ctx context.Context, n *meshlab.Node, rules []string) error {
	for _, r := range rules {
		if _, err := n.Output(ctx, "iptables", append([]string{"-w"}, strings.Fields(r)...)...); err != nil {
			return err
		}
	}
	return nil
}

// startPeer starts one side of a peer on the proxies' CPU.
func (s *stage) startPeer(ctx context.Context, p peer, sub *subject, side string, on *meshlab.Node, port int) (proc *meshlab.Process, err error) {
	state := filepath.Join(s.dir, p.name+"-"+side)
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chown(state, peerUID, peerUID); err != nil {
		return nil, err
	}
	text, err := p.render(side, values{Server: s.server.Addr4().String(), Far: sub.far.Addr4().String(), Dir: s.dir, State: state, Big: p.big})
	if err != nil {
		return nil, err
	}
	config := filepath.Join(state, p.config+"."+p.ext)
	if err := writeFor(peerUID, config, text); err != nil {
		return nil, err
	}
	uid := strconv.Itoa(peerUID)
	args := append([]string{"--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs", p.program}, p.args(config)...)
	err = onCPU(s.cpu, s.nice, func() error {
		proc, err = on.Start(ctx, p.name+"-"+side, port, "setpriv", args...)
		return err
	})
	return proc, err
}

// values are what the configurations leave open.
type values struct {
	Server, Far string // addresses
	Dir, State  string // certificates; a directory of the peer's own
	Modules     string
	Big         bool
}

func (p *peer) render(side string, v values) ([]byte, error) {
	name := "peers/" + p.config + "-" + side + "." + p.ext
	t, err := template.ParseFS(peerFiles, name)
	if err != nil {
		return nil, err
	}
	if p.modules != nil {
		if v.Modules, err = p.modules(); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b.Bytes(), nil
}

// nginxModules loads the stream module where it is one of its own, as on Debian.
func nginxModules() (string, error) {
	const path = "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(path); err == nil {
		return "load_module " + path + ";", nil
	}
	out, err := exec.Command("nginx", "-V").CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("--with-stream ")) {
		return "", nil
	}
	return "", errors.Join(errors.New("nginx has no stream module: install libnginx-mod-stream"), err)
}

// printed is the first line that a program prints about its version.
func (p *peer) printed() string {
	out, err := exec.Command(p.program, p.version(p.program)...).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.TrimSpace(strings.ReplaceAll(line, p.program, filepath.Base(p.program)))
}
