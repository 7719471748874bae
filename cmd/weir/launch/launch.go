// Package launch starts one program in the mesh: a network namespace, the rules, the
// proxy, then the program, and when that ends, nothing is left.
// What the proxy and the rules do it leaves to weir-proxy and weir-init; the
// caller brings the join token.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

// Config is what weir run was asked for. New checks it.
type Config struct {
	Service   string
	Namespace string
	Ports     []string // as for weir-proxy --app-port
	Labels    []string // as for weir-proxy --label
	Health    string   // as for weir-proxy --health-path; "" is its default
	Command   []string // the program and its arguments

	Control  []string // HOST:PORT as the machine reaches them
	Token    func(context.Context) (string, error)
	ProxyLog string // file; "" keeps the log as long as the run lives

	Publish   []string
	Netns     string // join this one; "" makes one
	Subnet    string // of the bridge
	NAT       bool   // let the runs reach what the machine reaches
	DNSSearch []string

	User    string
	Dir     string
	Env     []string
	EnvFile []string
	Grace   time.Duration
}

// run is a run under way. What it has set up it takes down in the opposite order.
type run struct {
	cfg     Config
	subnet  subnet
	publish []publication
	account account
	env     []string
	proxy   string // path of weir-proxy
	init    string // path of weir-init

	slots   slots
	slot    *slot
	ns      *netlab.Namespace
	address netip.Addr // of the namespace on the bridge; not valid in a joined one
	entry   Entry
	side    *sidecar
	undo    []func() error
}

// Usage is an error of how weir run was called.
type Usage struct{ error }

// Status is the exit status of an error of Run: as a shell has it for what could
// not be started, 125 for all else.
func Status(err error) int {
	var start *startError
	var sig *signalError
	switch {
	case errors.As(err, &start):
		return start.status
	case errors.As(err, &sig):
		return statusSignal + int(sig.signal)
	}
	return statusOwn
}

// signalError is a signal before the program was started.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string {
	return fmt.Sprintf("%v, before the program was started", e.signal)
}

// Run runs the program, and returns its exit status when all is gone again. An
// error is one of weir run itself; the program was not started then, or killed.
func Run(ctx context.Context, cfg Config) (status int, err error) {
	r, err := newRun(cfg)
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 16)
	for _, s := range passed {
		if !signal.Ignored(s) && s != syscall.SIGTSTP { // nohup holds for the program too
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	defer func() {
		if left := r.takeDown(signals); left != nil {
			say("not all could be removed, the next weir run tries again: %v", left)
		}
	}()
	if err := r.setUp(ctx, signals); err != nil {
		return 0, err
	}
	signal.Notify(signals, syscall.SIGTSTP)
	return r.do(signals)
}

// setUp does all that comes before the program. A signal ends it.
func (r *run) setUp(ctx context.Context, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx)) // signals come here
	defer cancel(nil)
	over := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case s := <-signals:
				if end := s.(syscall.Signal); end != syscall.SIGCONT && end != syscall.SIGWINCH {
					cancel(&signalError{end})
				}
			case <-over:
				return
			}
		}
	}()
	defer func() { close(over); <-watched }()
	for _, step := range []func(context.Context) error{
		r.reachControl, r.makeNamespace, r.installRules, r.startSidecar, r.openPublished,
	} {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
	}
	return nil
}

// reachControl looks for a control plane before anything is made.
func (r *run) reachControl(ctx context.Context) error {
	var errs []error
	for _, address := range r.cfg.Control {
		c, err := dialTo(address)(ctx)
		if err == nil {
			return c.Close()
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("no control plane answers: %w; start one with \"weir control\", or name another with --control HOST:PORT", errors.Join(errs...))
}

// makeNamespace takes a slot and, unless one is to be joined, makes a namespace on
// the bridge.
func (r *run) makeNamespace(ctx context.Context) error {
	return r.slots.exclusively(func() (err error) {
		if r.slot, err = r.slots.take(r.subnet.last(), r.removeDead); err != nil {
			return err
		}
		r.entry = Entry{
			Number: r.slot.number, PID: os.Getpid(), Service: r.cfg.Service, Namespace: r.cfg.Namespace, Ports: r.cfg.Ports,
			Published: r.cfg.Publish, Command: r.cfg.Command, Started: time.Now().Round(time.Millisecond), Netns: r.cfg.Netns, Joined: r.cfg.Netns != "",
		}
		r.later(r.leave)
		if r.cfg.Netns != "" {
			return r.join()
		}
		if err := ensureBridge(r.subnet); err != nil {
			return err
		}
		if r.cfg.NAT {
			if err := errors.Join(r.slots.mark("nat"), openNAT(ctx, r.subnet)); err != nil {
				return err
			}
		}
		if r.ns, err = netlab.MakeNamespace(netnsName(r.slot.number)); err != nil {
			return err
		}
		r.address = r.subnet.of(r.slot.number)
		r.entry.Netns, r.entry.Inode, r.entry.Address = r.ns.Path(), r.ns.Inode(), r.address.String()
		return errors.Join(plug(r.ns, r.subnet, r.slot.number), r.slot.tell(r.entry))
	})
}

func netnsName(n int) string { return "weir-run-" + strconv.Itoa(n) }

// join opens a namespace of somebody else's. Two runs in one would share rules and
// ports.
func (r *run) join() (err error) {
	path := r.cfg.Netns
	if filepath.Base(path) == path {
		path = filepath.Join("/run/netns", path)
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if r.ns, err = netlab.OpenNamespace(path); err != nil {
		return err
	}
	r.entry.Netns, r.entry.Inode = path, r.ns.Inode()
	live, err := r.slots.live()
	if err != nil {
		return err
	}
	for _, other := range live {
		if other.Inode == r.entry.Inode {
			return fmt.Errorf("--netns %s: the run of %s/%s with pid %d is there", path, other.Namespace, other.Service, other.PID)
		}
	}
	return nil
}

// installRules has weir-init do it. In a joined namespace they are removed at the
// end, unless they were there before.
func (r *run) installRules(ctx context.Context) error {
	out, err := r.weirInit(ctx, "--netns", r.ns.Path(), "--output", "json")
	if err != nil {
		return err
	}
	var result struct {
		Changed bool `json:"changed"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("weir-init's answer %q: %w", out, err)
	}
	if r.entry.Joined && result.Changed {
		r.entry.Cleanup = []string{r.init, "--netns", r.ns.Path(), "--cleanup"}
		r.later(func() error {
			_, err := r.weirInit(context.Background(), r.entry.Cleanup[1:]...)
			return err
		})
	}
	return r.slot.tell(r.entry)
}

func (r *run) weirInit(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.init, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a key at the terminal does not stop it half way
	out, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s: %w\n  %s", r.init, err, failed.Stderr)
	}
	return out, err
}

// startSidecar starts the proxy, with ways to the control plane and the resolvers
// of the machine in its namespace, and waits until it is ready.
func (r *run) startSidecar(ctx context.Context) error {
	control, err := r.relayControl()
	if err != nil {
		return err
	}
	conf := machineResolvConf()
	dns, err := newResolver(r.ns, conf.servers)
	if err != nil {
		return err
	}
	r.later(func() error { dns.close(); return nil })
	token, err := r.cfg.Token(ctx)
	if err != nil {
		return err
	}
	state, err := r.proxyFiles(token, conf)
	if err != nil {
		return err
	}
	args := []string{
		"--service", r.cfg.Service, "--namespace", r.cfg.Namespace, "--token-file", filepath.Join(state, "token"), "--state-dir", state,
		"--resolv-conf", filepath.Join(r.slot.dir, "proxy-resolv.conf"), "--drain-delay", "100ms", "--drain-timeout", drainLimit.String(),
	}
	if r.address.IsValid() {
		args = append(args, "--advertise", r.address.String())
	}
	if r.cfg.Health != "" {
		args = append(args, "--health-path", r.cfg.Health)
	}
	for flag, values := range map[string][]string{"--control": control, "--app-port": r.cfg.Ports, "--label": r.cfg.Labels} {
		for _, v := range values {
			args = append(args, flag, v)
		}
	}
	r.side = &sidecar{ns: r.ns, program: r.proxy, args: args, logFile: r.cfg.ProxyLog, say: say}
	if r.side.logFile == "" {
		r.side.logFile = filepath.Join(r.slot.dir, "proxy.log")
	}
	return r.side.start(ctx)
}

// relayControl opens a way to each control plane on the namespace's loopback.
func (r *run) relayControl() (addresses []string, err error) {
	for _, control := range r.cfg.Control {
		var ln net.Listener
		if err := r.ns.Do(func() (err error) { ln, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
			return nil, fmt.Errorf("a way to the control plane: %w", err)
		}
		way := newRelay(ln, dialTo(control))
		r.later(func() error { way.close(); return nil })
		addresses = append(addresses, ln.Addr().String())
	}
	return addresses, nil
}

// proxyFiles writes what the proxy reads, and gives its own directory.
func (r *run) proxyFiles(token string, conf resolvConf) (state string, err error) {
	state = filepath.Join(r.slot.dir, "proxy")
	if err := os.Mkdir(state, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(state, "token"), []byte(token+"\n"), 0o600); err != nil {
		return "", err
	}
	for name, text := range map[string]string{"proxy-resolv.conf": conf.forProxy(), "resolv.conf": conf.forProgram(r.cfg.DNSSearch)} {
		if err := os.WriteFile(filepath.Join(r.slot.dir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	if !otherUsers() {
		return state, nil
	}
	return state, errors.Join(os.Chown(state, proxyUID, proxyUID), os.Chown(filepath.Join(state, "token"), proxyUID, proxyUID))
}

// openPublished opens the addresses on the machine. They lead to the namespace's
// own address, and so through the proxy: what is published is under the mesh's
// rules like all else.
func (r *run) openPublished(context.Context) error {
	if len(r.publish) == 0 {
		return nil
	}
	to, err := r.reachableAddress()
	if err != nil {
		return err
	}
	for _, p := range r.publish {
		ln, err := net.Listen("tcp", p.listen)
		if err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
		way := newRelay(ln, dialTo(net.JoinHostPort(to.String(), strconv.Itoa(int(p.port)))))
		r.later(func() error { way.close(); return nil })
	}
	return nil
}

// reachableAddress is the namespace's on the bridge, or the first of a joined one.
func (r *run) reachableAddress() (netip.Addr, error) {
	if r.address.IsValid() {
		return r.address, nil
	}
	var addrs []net.Addr
	if err := r.ns.Do(func() (err error) { addrs, err = net.InterfaceAddrs(); return err }); err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("--publish: %s has no address to reach it by", r.ns.Path())
}

// do runs the program.
func (r *run) do(signals <-chan os.Signal) (int, error) {
	j, err := startJob(r.ns, &program{
		Args: r.cfg.Command, Dir: r.cfg.Dir, Credential: r.account.credential, Grace: r.cfg.Grace,
		ResolvConf: filepath.Join(r.slot.dir, "resolv.conf"), Search: len(r.cfg.DNSSearch) > 0,
	}, r.env)
	if err != nil {
		return 0, err
	}
	return j.attend(signals)
}

func (r *run) later(f func() error) { r.undo = append(r.undo, f) }

// say tells the user, beside what the program prints.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "weir run: "+format+"\n", args...) }
