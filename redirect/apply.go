package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Result says what Apply or Remove did.
type Result struct {
	Backend Mode     `json:"backend,omitempty"` // where the rules are; empty after Remove
	Why     string   `json:"why,omitempty"`     // why that back end
	Changed bool     `json:"changed"`           // false: everything was so already
	IPv6    bool     `json:"ipv6"`              // IPv6 was dealt with too
	Notes   []string `json:"notes,omitempty"`   // what the operator should know
}

// Print writes the result for a person to read.
func (r Result) Print(w io.Writer) error {
	var b strings.Builder
	families := "IPv4"
	if r.IPv6 {
		families = "IPv4 and IPv6"
	}
	switch {
	case r.Backend == "" && r.Changed:
		fmt.Fprintf(&b, "redirection removed (%s)\n", families)
	case r.Backend == "":
		fmt.Fprintf(&b, "nothing to remove (%s)\n", families)
	case r.Changed:
		fmt.Fprintf(&b, "redirection installed for %s, back end %s: %s\n", families, r.Backend, r.Why)
	default:
		fmt.Fprintf(&b, "redirection is in place already for %s, back end %s\n", families, r.Backend)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Apply installs the plan in the network namespace of the calling thread. Both
// families are installed or none is: what a failed Apply had done is put back.
// Where the plan is installed already nothing is touched; another plan of ours
// is replaced in one transaction per table, never leaving a moment without rules.
// Rules of others stay as they are. It waits for another Apply or Remove in the
// same namespace to end, for as long as ctx allows.
func (p *Plan) Apply(ctx context.Context) (Result, error) {
	return p.exclusively(ctx, "apply")
}

// Remove takes away all that any plan of ours has installed in the network
// namespace of the calling thread, in both back ends and families, also what a
// crash left half done. Nothing else is touched; the tables themselves, then
// perhaps empty, stay.
func Remove(ctx context.Context) (Result, error) {
	nothing := &Plan{cfg: Config{IPv6: IPv6Auto, Mode: ModeAuto}}
	nothing.family[1].v6 = true
	return nothing.exclusively(ctx, "remove")
}

func (p *Plan) exclusively(ctx context.Context, step string) (Result, error) {
	unlock, err := lockNamespace(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("redirect: %s: %w", step, err)
	}
	defer unlock()
	ipv6 := hasIPv6()
	both := lookBoth(ctx, ipv6)
	var res Result
	if step == "remove" {
		res, err = p.remove(ctx, both, ipv6)
	} else {
		res, err = p.install(ctx, both, ipv6)
	}
	if err != nil {
		return Result{}, fmt.Errorf("redirect: %s: %w", step, err)
	}
	return res, nil
}

func (p *Plan) install(ctx context.Context, both [2]installed, ipv6 bool) (Result, error) {
	if !ipv6 && p.cfg.IPv6 == IPv6On {
		return Result{}, errors.New("IPv6 was asked for and this kernel has none")
	}
	if err := p.cfg.ownersExist(); err != nil {
		return Result{}, err
	}
	chosen, other, why, err := choose(p.cfg.Mode, both)
	if err != nil {
		return Result{}, err
	}
	res := Result{Backend: chosen.backend, Why: why, IPv6: ipv6 && p.cfg.IPv6 != IPv6Off}
	switch {
	case !ipv6:
		res.Notes = append(res.Notes, "this kernel has no IPv6; there is nothing to redirect")
	case p.cfg.IPv6 == IPv6Off:
		res.Notes = append(res.Notes, "IPv6 is not redirected, as asked: it passes the proxy by")
	}
	if other.ours() > 0 {
		res.Notes = append(res.Notes, fmt.Sprintf("weir's rules in the other back end, %s, were removed", other.backend))
	}
	var done transaction
	want := p.families(ipv6)
	for i, f := range chosen.families {
		plan := familyPlan{v6: f.v6}
		if i < len(want) {
			plan = want[i]
		}
		note, err := done.route(plan)
		if err == nil {
			err = done.rules(ctx, f, plan.tables)
		}
		if err != nil {
			return Result{}, done.rollback(err)
		}
		if note != "" {
			res.Notes = append(res.Notes, note)
		}
	}
	// Last, so that the old rules hold until the new ones do.
	for _, f := range other.families {
		if err := done.rules(ctx, f, nil); err != nil {
			return Result{}, done.rollback(err)
		}
	}
	res.Changed = done.changed
	return res, nil
}

// remove goes on after a failure: what can be taken away is.
func (p *Plan) remove(ctx context.Context, both [2]installed, ipv6 bool) (Result, error) {
	if both[0].err != nil && both[1].err != nil {
		return Result{}, errors.Join(both[0].err, both[1].err)
	}
	res := Result{IPv6: ipv6}
	var done transaction
	var errs []error
	for _, in := range both {
		if in.err != nil && !errors.Is(in.err, errNoIptables) {
			res.Notes = append(res.Notes, fmt.Sprintf("the %s back end could not be looked at: %v", in.backend, in.err))
		}
		for _, f := range in.families {
			errs = append(errs, done.rules(ctx, f, nil))
		}
	}
	for _, f := range p.families(ipv6) {
		_, err := done.route(f)
		errs = append(errs, err)
	}
	res.Changed = done.changed
	return res, errors.Join(errs...)
}

// transaction remembers how to undo what was done.
type transaction struct {
	changed bool
	undo    []func() error
}

func (t *transaction) route(f familyPlan) (note string, err error) {
	undo, changed, note, err := setRoutes(f)
	if err != nil {
		return "", err
	}
	if changed {
		t.changed = true
		t.undo = append(t.undo, undo)
	}
	return note, nil
}

func (t *transaction) rules(ctx context.Context, f familyState, want []table) error {
	if same(f.ours, want) {
		return nil
	}
	t.changed = true
	// Registered first: an iptables-restore that fails may have committed some tables.
	t.undo = append(t.undo, func() error {
		now, _, err := f.state(context.WithoutCancel(ctx))
		if err != nil {
			return fmt.Errorf("put back: %w", err)
		}
		if err := f.apply(context.WithoutCancel(ctx), change(now, f.ours)); err != nil {
			return fmt.Errorf("put back: %w", err)
		}
		return nil
	})
	return f.apply(ctx, change(f.ours, want))
}

func (t *transaction) rollback(cause error) error {
	errs := []error{cause}
	for _, undo := range slices.Backward(t.undo) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// lockNamespace excludes others from the network namespace. Abstract Unix sockets
// belong to the network namespace, so a bound one is a lock that all its
// containers and processes see and that a crash gives back.
func lockNamespace(ctx context.Context) (unlock func(), err error) {
	const pause = 20 * time.Millisecond
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@weir-redirect"})
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			unix.Close(fd)
			return nil, fmt.Errorf("lock: %w", err)
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			return nil, fmt.Errorf("another process is changing the redirection of this namespace: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}
