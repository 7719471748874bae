package controlplane

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/meshfile"
	"github.com/weir-mesh/weir/controlplane/store"
)

const (
	// resolveEvery is how often the file's host names are looked up again: what a
	// name server answers carries a time to live, of which Go's resolver does not
	// tell. It is also how soon something that was taken out of the store by other
	// hands is put back.
	resolveEvery = 30 * time.Second
	// applyAgain is the wait after the store did not take a file.
	applyAgain = 2 * time.Second
)

// configFile keeps what a mesh file says in force. Made for no path, it follows
// nothing.
type configFile struct {
	path     string
	name     string // names this control plane in what it applies
	follower *meshfile.Follower
	store    *store.Store // set by use
	names    resolver
	log      *zap.Logger
	wake     chan struct{} // holds a token when there is something new to apply

	mu         sync.Mutex // guards what follows
	good       *meshfile.File
	refused    []string // what is wrong with a newer content
	failing    string   // why the store did not take the good one
	leading    bool
	unresolved []string
}

// newConfigFile reads a file for the first time. One that is wrong is an error: to
// start without it would be to take traffic under rules that nobody asked for.
func newConfigFile(path, name string, log *zap.Logger) (*configFile, error) {
	c := &configFile{name: name, log: log, wake: make(chan struct{}, 1), names: newResolver()}
	if path == "" {
		return c, nil
	}
	var err error
	// Absolute: it is shown to people who are elsewhere.
	if c.path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	if c.follower, c.good, err = meshfile.NewFollower(c.path); err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	c.warn(c.good)
	return c, nil
}

func (c *configFile) warn(f *meshfile.File) {
	for _, w := range f.Warnings {
		c.log.Warn("mesh file: " + w.String())
	}
}

// use puts the file in force before anybody is served, where this process has the
// store for itself. There, what an earlier file has left is let go when none is
// followed now: else nobody could change it.
func (c *configFile) use(ctx context.Context, st *store.Store, alone bool) error {
	c.store = st
	was := st.State().File
	switch {
	case c.good == nil && was == nil:
		return nil
	case c.good == nil && alone:
		c.log.Warn("no mesh file is followed now: what the last one set stays in force, and can be changed by the API", zap.String("file", was.Name))
		return st.ReleaseFile(ctx)
	case c.good == nil:
		c.log.Warn("this control plane follows no mesh file: what another one applied stays in force", zap.String("file", was.Name), zap.String("by", was.By))
		return nil
	case alone:
		c.setLeading(true)
		return c.apply(ctx)
	}
	return nil
}

// run follows the file until ctx ends. Among control planes that share a store one
// applies its file, and another when that one is gone.
func (c *configFile) run(ctx context.Context) error {
	if c.follower == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		c.follower.Run(ctx, c.changed)
		return nil
	})
	g.Go(func() error { return c.store.Lead(ctx, "mesh-file", c.name, c.lead) })
	return g.Wait()
}

// changed takes a new content, or what is wrong with it.
func (c *configFile) changed(f *meshfile.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.refused = strings.Split(err.Error(), "\n")
		c.log.Error("the mesh file was refused; what was in force stays", zap.String("file", c.path), zap.Strings("errors", c.refused))
		return
	}
	c.refused, c.good = nil, f
	c.warn(f)
	select {
	case c.wake <- struct{}{}:
	default: // a token is there already
	}
}

// lead applies the file now, whenever it changes, and from time to time.
func (c *configFile) lead(ctx context.Context) error {
	c.setLeading(true)
	defer c.setLeading(false)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-c.wake:
		}
		wait := resolveEvery
		if err := c.apply(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("the mesh file could not be applied; trying again", zap.Duration("in", applyAgain), zap.Error(err))
			wait = applyAgain
		}
		timer.Reset(wait)
	}
}

func (c *configFile) setLeading(leading bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leading = leading
}

// apply puts the newest good content in force.
func (c *configFile) apply(ctx context.Context) error {
	c.mu.Lock()
	f := c.good
	c.mu.Unlock()
	endpoints, unresolved := c.names.resolve(ctx, f, c.stored)
	was := c.store.State().File
	err := c.store.ApplyFile(ctx, store.File{
		Name: c.path, Digest: f.Digest, By: c.name, AppliedAt: unix(time.Now()), Settings: f.Settings,
	}, endpoints)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing = ""
	for _, u := range unresolved {
		if !slices.Contains(c.unresolved, u) {
			c.log.Warn("mesh file: a host name leads nowhere: " + u)
		}
	}
	c.unresolved = unresolved
	if err != nil {
		c.failing = err.Error()
		return err
	}
	if was == nil || was.Digest != f.Digest || was.Name != c.path {
		c.log.Info("the mesh file is in force", zap.String("file", c.path), zap.String("digest", f.Digest),
			zap.Int("services", len(f.Services)), zap.Int("endpoints", len(endpoints)))
	}
	return nil
}

// stored gives the addresses at which an instance is in the store: a control plane
// that has just started knows no others while a name server is away.
func (c *configFile) stored(inst *meshfile.Instance) []netip.Addr {
	svc := c.store.State().Services.Get(inst.Endpoint.Service())
	if svc == nil {
		return nil
	}
	var out []netip.Addr
	for i := range svc.Endpoints {
		if e := &svc.Endpoints[i]; e.File && strings.HasPrefix(e.ID, inst.Prefix()+"@") {
			out = append(out, e.Addr().Addr())
		}
	}
	return out
}

// status tells how the file stands, nil where there is none.
func (c *configFile) status() *api.ConfigFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &api.ConfigFile{Path: c.path, Errors: c.refused, Unresolved: c.unresolved}
	applied := c.store.State().File
	if applied != nil {
		out.Path = cmp.Or(c.path, applied.Name)
		out.Digest, out.AppliedAt, out.AppliedBy = applied.Digest, applied.AppliedAt, applied.By
	}
	if c.good != nil {
		out.Warnings = c.good.Warnings.Lines()
	}
	switch {
	case c.follower == nil && applied == nil:
		return nil
	case c.follower == nil:
		out.State = "kept"
	case len(c.refused) > 0:
		out.State = "refused"
	case c.failing != "":
		out.State, out.Errors = "failing", []string{c.failing}
	case !c.leading:
		out.State = "waiting"
	default:
		out.State = "applied"
	}
	return out
}
