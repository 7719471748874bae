package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/redirect"
	"github.com/weir-mesh/weir/redirect/shortcut"
)

// Values of --shortcut.
const (
	shortcutOn   = "on"
	shortcutOff  = "off"
	shortcutAuto = "auto"
)

// shortcutConfig is what of the redirection's settings the short cut needs. In
// uid mode the proxy's connections to its app have no mark; then only those of
// the app are shortened.
func (f *flags) shortcutConfig(cfg redirect.Config) shortcut.Config {
	c := shortcut.Config{OutboundPort: cfg.OutboundPort, InboundMark: cfg.InboundMark, Cgroup: f.cgroup}
	if cfg.ProxyUID != nil {
		c.InboundMark = 0
	}
	return c
}

// installShortcut comes before the rules: without them it does nothing, and what
// cannot be had is known before anything is redirected. undo takes back what it did.
func (f *flags) installShortcut(cfg redirect.Config) (changed bool, notes []string, undo func() error, err error) {
	undo = func() error { return nil }
	if f.shortcut == shortcutOff {
		res, err := shortcut.Remove() // what an earlier call installed
		if res.Changed {
			notes = append(notes, "the short cut between app and proxy was removed")
		}
		return res.Changed, notes, undo, err
	}
	res, err := shortcut.Install(f.shortcutConfig(cfg))
	switch {
	case err != nil && f.shortcut == shortcutAuto:
		return false, []string{fmt.Sprintf("no short cut, the plain path holds: %v", err)}, undo, nil
	case err != nil:
		return false, nil, undo, err
	case res.Changed:
		undo = func() error { _, err := shortcut.Remove(); return err }
		notes = append(notes, "short cut installed between app and proxy, in cgroup "+res.Cgroup)
	default:
		notes = append(notes, "the short cut is in place already, in cgroup "+res.Cgroup)
	}
	return res.Changed, append(notes, res.Notes...), undo, nil
}

// install puts everything in place, or nothing.
func (f *flags) install(ctx context.Context, cfg redirect.Config, plan *redirect.Plan) (redirect.Result, error) {
	changed, notes, undo, err := f.installShortcut(cfg)
	if err != nil {
		return redirect.Result{}, err
	}
	res, err := plan.Apply(ctx)
	if err != nil {
		return redirect.Result{}, errors.Join(err, undo())
	}
	res.Changed = res.Changed || changed
	res.Notes = append(res.Notes, notes...)
	return res, nil
}

// remove takes everything away, going on after a failure.
func remove(ctx context.Context) (redirect.Result, error) {
	res, err := redirect.Remove(ctx)
	short, errShort := shortcut.Remove()
	if short.Changed {
		res.Changed = true
		res.Notes = append(res.Notes, "the short cut between app and proxy was removed")
	}
	return res, errors.Join(err, errShort)
}

// printShortcut says what --dry-run would install besides the rules.
func (f *flags) printShortcut(w io.Writer, cfg redirect.Config) error {
	if f.shortcut == shortcutOff {
		return nil
	}
	cgroup := f.cgroup
	if cgroup == "" {
		cgroup = "the root of cgroup v2"
	}
	c := f.shortcutConfig(cfg)
	_, err := fmt.Fprintf(w, "# short cut: eBPF programs weir_establish and weir_refuse on %s, weir_hand on a map of sockets,\n"+
		"# kept below /sys/fs/bpf/weir; an entry of this namespace for port %d and mark %#x\n", cgroup, c.OutboundPort, c.InboundMark)
	return err
}

// verifyShortcut compares it with the settings and makes a connection.
func (f *flags) verifyShortcut(ctx context.Context, cfg redirect.Config, r *redirect.Report) error {
	c := f.shortcutConfig(cfg)
	before, differs, err := shortcut.Look(c)
	if err != nil {
		return err
	}
	check := redirect.Check{Name: "short cut", Status: redirect.OK}
	switch installed := !errors.Is(differs, shortcut.ErrNone); {
	case f.shortcut == shortcutOff && !installed:
		return nil
	case f.shortcut == shortcutOff:
		check.Status, check.Detail = redirect.Failed, "one is installed, and --shortcut off does not want it"
	case f.shortcut == shortcutAuto && !installed:
		check.Status, check.Detail = redirect.Skipped, "none is installed, the plain path holds"
	case differs != nil:
		check.Status, check.Detail = redirect.Failed, differs.Error()
	default:
		check.Status, check.Detail = tryShortcut(ctx, c, before)
	}
	if check.Status == redirect.Failed {
		check.Todo = "run weir-init again with the same settings"
	}
	r.Checks = append(r.Checks, check)
	return nil
}

// tryShortcut dials the proxy's port as an app would, and looks whether the two
// ends found each other. Where nobody listens there it does so itself.
func tryShortcut(ctx context.Context, c shortcut.Config, before shortcut.Figures) (redirect.Status, string) {
	const patience = 2 * time.Second
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(c.OutboundPort)))
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // as the proxy's listener
	if l, err := lc.Listen(ctx, "tcp4", at); err == nil {
		defer func() { _ = l.Close() }()
	}
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp4", at)
	if err != nil {
		return redirect.Failed, fmt.Sprintf("cannot connect to port %d: %v", c.OutboundPort, err)
	}
	defer func() { _ = conn.Close() }()
	for until := time.Now().Add(patience); ; {
		now, _, err := shortcut.Look(c)
		switch {
		case err != nil:
			return redirect.Failed, err.Error()
		case now.Paired > before.Paired:
			return redirect.OK, fmt.Sprintf("the two ends of a connection to port %d found each other; so far %d pairs here, for %d no room", c.OutboundPort, now.Paired, now.Full)
		case time.Now().After(until):
			return redirect.Failed, fmt.Sprintf("the two ends of a connection to port %d did not find each other (is this process in the cgroup?)", c.OutboundPort)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
