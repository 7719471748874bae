package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/netlab"
)

// proxyUID is the user that sidecars run as, where there are other users than root.
const proxyUID = 15001

const (
	readyLimit = 30 * time.Second
	drainLimit = 10 * time.Second
	adminAddr  = "127.0.0.1:15000"
)

// sidecar is the proxy of a run. One that ends by itself is started again; until
// then the rules lead the program's connections to a port where nobody listens, so
// they are refused.
type sidecar struct {
	ns      *netlab.Namespace
	program string // weir-proxy
	args    []string
	logFile string
	say     func(format string, args ...any)

	mu       sync.Mutex // guards what follows
	process  *os.Process
	stopping bool
	stopped  chan struct{} // closed by stop, to end a wait before the next start
	done     chan struct{} // closed when the proxy has ended for good
}

// start starts the sidecar and waits until it is ready and attached to the
// control plane, which is when its endpoints are registered.
func (s *sidecar) start(ctx context.Context) error {
	s.stopped, s.done = make(chan struct{}), make(chan struct{})
	ended, err := s.launch()
	if err != nil {
		close(s.done)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.ready(ctx)
		if err == nil {
			go s.keep(ended)
			return nil
		}
		select {
		case err := <-ended:
			close(s.done)
			return fmt.Errorf("weir-proxy ended (%w)\n%s", err, s.tail())
		case <-ctx.Done():
			go s.keep(ended)
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("weir-proxy is not ready after %v: %w\n%s", readyLimit, err, s.tail())
		case <-tick.C:
		}
	}
}

// launch starts the process, unless there was a stop.
func (s *sidecar) launch() (<-chan error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, errStopping
	}
	log, err := os.OpenFile(s.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("--proxy-log: %w", err)
	}
	defer func() { _ = log.Close() }()
	program, err := os.Open(s.program)
	if err != nil {
		return nil, err
	}
	defer func() { _ = program.Close() }()
	cmd := exec.Command(s.program, s.args...)
	if !reachable(s.program) {
		cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{program}
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", []string{}, log, log
	// A group of its own: what the terminal sends is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if otherUsers() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: proxyUID, Gid: proxyUID}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_RAW} // for its marks
	}
	ended, err := startIn(s.ns, cmd, func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.program, err)
	}
	s.process = cmd.Process
	return ended, nil
}

var errStopping = errors.New("the run is ending")

// keep starts the sidecar again whenever it ends by itself.
func (s *sidecar) keep(ended <-chan error) {
	defer close(s.done)
	const first, longest = 50 * time.Millisecond, 5 * time.Second
	for wait := first; ; {
		began := time.Now()
		err := <-ended
		if s.isStopping() {
			return
		}
		s.say("the proxy has ended (%v); connections are refused until it runs again", howEnded(err))
		if time.Since(began) > longest {
			wait = first
		}
		for {
			select {
			case <-s.stopped:
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, longest)
			if ended, err = s.launch(); err == nil {
				s.say("the proxy runs again")
				break
			}
			if errors.Is(err, errStopping) {
				return
			}
			s.say("the proxy could not be started again: %v; trying again in %v", err, wait)
		}
	}
}

func howEnded(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (s *sidecar) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// stop has the sidecar leave the mesh and drain, and kills it if that takes too
// long or ctx ends. It returns when the process is gone.
func (s *sidecar) stop(ctx context.Context) {
	s.mu.Lock()
	if !s.stopping {
		s.stopping = true
		close(s.stopped)
	}
	p := s.process
	s.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.Signal(syscall.SIGTERM) // it may have ended before
	ctx, cancel := context.WithTimeout(ctx, drainLimit+5*time.Second)
	defer cancel()
	select {
	case <-s.done:
	case <-ctx.Done():
		_ = p.Kill()
		<-s.done
	}
}

// ready asks the sidecar's admin port.
func (s *sidecar) ready(ctx context.Context) error {
	if err := s.admin(ctx, "/ready", nil); err != nil {
		return err
	}
	var status struct {
		Control struct {
			Attached bool `json:"attached"`
		} `json:"control"`
	}
	if err := s.admin(ctx, "/status", &status); err != nil {
		return err
	}
	if !status.Control.Attached {
		return errors.New("it is not attached to the control plane yet")
	}
	return nil
}

func (s *sidecar) admin(ctx context.Context, path string, v any) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = s.ns.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, "tcp", adminAddr)
			return err
		})
		return c, err
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminAddr+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
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

// tail is what the proxy said last.
func (s *sidecar) tail() string {
	b, err := os.ReadFile(s.logFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-5):], "\n  ")
}

// reachable tells whether every user gets at a file: a program below /root is
// started by a descriptor.
func reachable(path string) bool {
	for path = filepath.Dir(path); ; path = filepath.Dir(path) {
		st, err := os.Stat(path)
		if err != nil || st.Mode()&0o001 == 0 {
			return false
		}
		if path == "/" {
			return true
		}
	}
}

// otherUsers tells whether there are other users than root: not in a user
// namespace that knows one only.
func otherUsers() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && bytes.Contains(b, []byte("4294967295"))
}
