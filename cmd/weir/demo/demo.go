// Package demo runs a small mesh on this machine and shows, with real programs
// and measured figures, what it does. How a mesh is run it leaves to meshlab,
// what the mesh does to weir's own programs.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

// Config says how the demo is run.
type Config struct {
	Keep bool      // leave the mesh running after the claims until ctx ends
	Out  io.Writer // what is shown
	Bin  string    // directory with weir, weir-proxy and weir-init; "" is where this program is
}

// Run runs the demo and removes all of it again. The error is nil only if every
// claim holds. A user who is not root is given a user namespace, in which the
// program is run again: its failure is then an *exec.ExitError, and all has been
// said. Of the signals that end a program, the first ends the demo, and others
// are held off until it has cleaned up.
func Run(ctx context.Context, cfg Config) error {
	if done, err := netlab.Reexec(); done || err != nil {
		return err
	}
	// A terminal's interrupt reaches a program in a user namespace twice, once
	// passed on by the one outside: the second must not cut the cleaning short.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := findPrograms(&cfg); err != nil {
		return err
	}
	return (&demo{cfg: cfg, out: newReport(cfg.Out), started: time.Now(), sent: tally{}}).run(ctx)
}

// needed are the programs that the demo cannot do without, and Debian's
// packages that have them.
var needed = [][2]string{
	{"iptables-save", "iptables"}, {"ip", "iproute2"}, {"nsenter", "util-linux"}, {"unshare", "util-linux"},
	{"setpriv", "util-linux"}, {"curl", "curl"}, {"getent", "libc-bin"},
}

func findPrograms(cfg *Config) error {
	// Where a plain user's PATH has no sbin, iptables and nginx are in it.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"); err != nil {
		return err
	}
	if cfg.Bin == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find weir's own programs: %w", err)
		}
		cfg.Bin = filepath.Dir(self)
	}
	var commands, packages []string
	for _, p := range needed {
		if _, err := exec.LookPath(p[0]); err != nil {
			commands, packages = append(commands, p[0]), append(packages, p[1])
		}
	}
	if len(commands) > 0 {
		return fmt.Errorf("the demo needs %s: apt-get install %s", strings.Join(commands, ", "), strings.Join(packages, " "))
	}
	return nil
}

// claim is one thing the mesh is said to do. show measures it: the text is what
// was measured, the error what was expected and what was seen instead.
type claim struct {
	title string
	show  func(context.Context) (string, error)
}

// claims are in the order in which they are shown; each leaves the mesh as it
// was for the next.
func (d *demo) claims() []claim {
	return []claim{
		{"names", d.showNames},
		{"balancing", d.showBalancing},
		{"header rule", d.showHeaderRule},
		{"caller's identity", d.showIdentity},
		{"circuit breaker", d.showCircuit},
		{"rate limit", d.showRateLimit},
		{"no rule, no access", d.showNoRule},
		{"strict mTLS", d.showModes},
		{"raw TCP", d.showTCP},
		{"encryption", d.showEncryption}, // before it, raw TCP is known to work
		{"control plane killed", d.showControlKilled},
		{"metrics", d.showMetrics}, // after all traffic, to count all of it
		{"redirection removed", d.showRulesRemoved},
	}
}

// errClaims is the demo's verdict, after each claim's own has been shown.
var errClaims = errors.New("not every claim holds")

func (d *demo) run(ctx context.Context) error {
	holds, err := d.live(ctx)
	if d.mesh == nil {
		return interrupted(ctx, err)
	}
	// From here on the mesh is to be removed, whatever came before and whatever
	// signal comes now.
	left := d.remove()
	if err != nil {
		return errors.Join(interrupted(ctx, err), left)
	}
	d.out.claim("nothing left behind", d.removed, left)
	return d.out.summary(holds && left == nil, time.Since(d.started))
}

// live is the demo while the mesh is there.
func (d *demo) live(ctx context.Context) (holds bool, err error) {
	if err := d.setUp(ctx); err != nil {
		return false, err
	}
	holds = true
	for _, c := range d.claims() {
		measured, err := c.show(ctx)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		d.out.claim(c.title, measured, err)
		if err != nil {
			holds = false
			d.out.logs(d.processes())
		}
	}
	if d.cfg.Keep {
		d.printKeep()
		<-ctx.Done()
		d.out.line("stopping")
	}
	return holds, nil
}

// interrupted gives a cut-off step's error the name of its cause.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}
