package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/test/meshlab"
)

// Ports of the backends: the small one first, see newBackend.
const (
	plainPort = 8001 // the server that all share
	scalePort = 8101 // the same, for the thousand services
	meshPort  = 9001 // beside the far proxy of each
)

// peerUID is the user under which peers run. Their redirection lets it pass,
// which is how other meshes tell their proxies; weir's is told by a mark.
const peerUID = 15002

// stage is where everything happens: namespaces for the server, for a client
// that no proxy stands before, and two for each proxy that is measured.
type stage struct {
	mesh      *meshlab.Mesh
	load, cpu int // the CPU of generator and backends, and that of the proxies
	nice      int // the priority of all of them
	self      string
	dir       string // certificates and configurations of the peers

	server   *meshlab.Node
	direct   *meshlab.Node
	backend  *meshlab.Process // of server
	scale    *meshlab.Process // of server, second
	subjects []*subject
	shakers  clientCert // the client's in handshakes with peers
}

// subject is a proxy that is measured, or none.
type subject struct {
	name    string
	client  *meshlab.Node    // where the generator runs
	far     *meshlab.Node    // behind the second proxy, nil for direct
	near    *meshlab.Process // the proxy beside the client, nil for direct
	behind  *meshlab.Process // the proxy beside far
	app     *meshlab.Process // the backend in far
	shaker  clientCert
	restart func(context.Context) error // both proxies, anew
}

type clientCert struct{ cert, key, alpn string }

// openStage sets up the mesh and the peers that are wanted. What could not be
// had is said in absent.
func openStage(ctx context.Context, o *options, logf func(string, ...any)) (_ *stage, absent []string, err error) {
	if os.Geteuid() != 0 {
		return nil, nil, errors.New("namespaces with several users are needed: run as root")
	}
	if err := raiseFileLimit(); err != nil {
		return nil, nil, err
	}
	s := &stage{nice: o.nice}
	if s.load, s.cpu, err = twoCPUs(); err != nil {
		return nil, nil, err
	}
	if s.self, err = os.Executable(); err != nil {
		return nil, nil, err
	}
	err = onCPU(s.load, s.nice, func() (err error) {
		s.mesh, err = meshlab.Start(ctx, meshlab.Config{Bin: o.bin, Progress: logf})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err = s.openServer(ctx); err != nil {
		return nil, nil, err
	}
	if err = s.addWeir(ctx); err != nil {
		return nil, nil, fmt.Errorf("weir: %w", err)
	}
	if o.before != "" {
		if err = s.addBefore(ctx, o.before); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", beforePeer, err)
		}
	}
	asked := slices.Contains(o.peers, shortcutPeer)
	if asked || len(o.peers) == 0 {
		failed := s.addShortcut(ctx)
		if err = failed; asked && err != nil {
			return nil, nil, fmt.Errorf("%s: %w", shortcutPeer, err)
		}
		if failed != nil {
			absent = append(absent, shortcutPeer+" ("+failed.Error()+")")
		}
	}
	others, err := s.addPeers(ctx, o, logf)
	if err != nil {
		return nil, nil, err
	}
	return s, append(absent, others...), s.checkCPUs()
}

// checkCPUs proves that every proxy has the one CPU that is meant for it.
func (s *stage) checkCPUs() error {
	for _, sub := range s.subjects {
		for _, p := range []*meshlab.Process{sub.near, sub.behind} {
			if p == nil {
				continue
			}
			var set unix.CPUSet
			if err := unix.SchedGetaffinity(p.Pid(), &set); err != nil {
				return fmt.Errorf("ask for the CPUs of %s: %w", p.Name, err)
			}
			if set.Count() != 1 || !set.IsSet(s.cpu) {
				return fmt.Errorf("%s is not bound to CPU %d", p.Name, s.cpu)
			}
		}
	}
	return nil
}

// end kills a program and waits until all its processes are gone: a worker of
// nginx that outlives its master for a moment still holds the ports.
func end(ctx context.Context, p *meshlab.Process) error {
	all, err := family(p.Pid())
	if err != nil {
		return err
	}
	p.Kill()
	for _, pid := range all {
		for running(pid) {
			if err := sleep(ctx, 2*time.Millisecond); err != nil {
				return fmt.Errorf("wait for the end of process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// running is false for a process that has ended, waited for or not.
func running(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	return err == nil && len(fields) > 0 && fields[0][0] != 'Z'
}

func (s *stage) close() error {
	if s.mesh == nil {
		return nil
	}
	return s.mesh.Close()
}

// raiseFileLimit takes as many descriptors as this process may have, for itself
// and for what it starts: Envoy does not ask for more than it is given.
func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}

func (s *stage) openServer(ctx context.Context) (err error) {
	s.dir = filepath.Join(s.mesh.Dir, "bench")
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	if s.shakers, err = writeCertificates(s.dir); err != nil {
		return err
	}
	if err := s.mesh.Lab.Bridge().Do(plainBridge); err != nil {
		return err
	}
	if s.server, err = s.host("server"); err != nil {
		return err
	}
	if s.direct, err = s.host("direct"); err != nil {
		return err
	}
	if s.backend, err = s.startBackend(ctx, s.server, plainPort); err != nil {
		return err
	}
	if s.scale, err = s.startBackend(ctx, s.server, scalePort); err != nil {
		return err
	}
	s.subjects = append(s.subjects, &subject{name: "direct", client: s.direct})
	return nil
}

// plainBridge keeps the firewall away from frames that the bridge carries. It is
// only the wire here, and what it costs would be counted to whoever sends.
func plainBridge() error {
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the module is not loaded
			return err
		}
	}
	return nil
}

// host makes a namespace in which ports come back quickly: thousands of
// connections a second would use them up, in every proxy's namespace alike.
func (s *stage) host(name string) (*meshlab.Node, error) {
	n, err := s.mesh.Bare(name)
	if err != nil {
		return nil, err
	}
	return n, n.Do(func() error {
		for file, value := range map[string]string{
			"net/ipv4/ip_local_port_range": "20000 65535",
			"net/ipv4/tcp_tw_reuse":        "1",
			"net/core/somaxconn":           "4096",
			"net/ipv4/tcp_max_syn_backlog": "4096",
			// The works follow each other from the same ports, sooner than anything
			// but a benchmark would: what netfilter remembers of closed connections
			// would be in the way where several ports lead to one listener.
			"net/netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
		} {
			if err := os.WriteFile("/proc/sys/"+file, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *stage) startBackend(ctx context.Context, n *meshlab.Node, port int) (p *meshlab.Process, err error) {
	err = onCPU(s.load, s.nice, func() error {
		p, err = n.Start(ctx, "backend-"+n.Host.Name()+"-"+strconv.Itoa(port), port, s.self, "backend", "-port", strconv.Itoa(port))
		return err
	})
	return p, err
}

// run runs the generator on a host and returns what it saw.
func (s *stage) run(ctx context.Context, on *meshlab.Node, l *load) (*sample, error) {
	var out string
	err := onCPU(s.load, s.nice, func() (err error) {
		out, err = on.Output(ctx, s.self, l.args()...)
		return err
	})
	if err != nil {
		return nil, err
	}
	var got sample
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		return nil, fmt.Errorf("read the generator's answer %q: %w", out, err)
	}
	return &got, nil
}

// held are idle connections that a generator keeps.
type held struct {
	cmd   *exec.Cmd
	stdin interface{ Close() error }
}

// hold opens connections and returns when all of them stand, idle.
func (s *stage) hold(ctx context.Context, on *meshlab.Node, l *load) (*held, error) {
	cmd := s.mesh.Command(ctx, on.Host, s.self, l.args()...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := onCPU(s.load, s.nice, cmd.Start); err != nil {
		return nil, err
	}
	line := make([]byte, 64)
	if n, err := stdout.Read(line); err != nil || !strings.HasPrefix(string(line[:n]), "held ") {
		_ = stdin.Close()
		return nil, fmt.Errorf("hold %d connections: %w: %s", l.conns, errors.Join(err, cmd.Wait()), bytes.TrimSpace(stderr.Bytes()))
	}
	return &held{cmd, stdin}, nil
}

func (h *held) release() error {
	return errors.Join(h.stdin.Close(), h.cmd.Wait())
}

func pids(of ...*meshlab.Process) (string, error) {
	var out []string
	for _, p := range of {
		all, err := family(p.Pid())
		if err != nil {
			return "", err
		}
		for _, pid := range all {
			out = append(out, strconv.Itoa(pid))
		}
	}
	return strings.Join(out, ","), nil
}

// memory is the resident memory of a proxy in bytes: all of its largest process
// and what the others have for themselves, so that the pages which nginx's
// processes share count once.
func memory(p *meshlab.Process) (int64, error) {
	all, err := family(p.Pid())
	if err != nil {
		return 0, err
	}
	var sum, gain int64
	for _, pid := range all {
		rss, err := resident(pid)
		if err != nil {
			return 0, err
		}
		own, err := private(pid)
		if err != nil {
			return 0, err
		}
		sum += own
		gain = max(gain, rss-own)
	}
	return sum + gain, nil
}

// private is the memory that a process shares with no other.
func private(pid int) (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	var sum int64
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && strings.HasPrefix(fields[0], "Private_") {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
			}
			sum += kib << 10
		}
	}
	return sum, nil
}

func (s *stage) api() *api.Client { return s.mesh.API }
