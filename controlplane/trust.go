package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/ca"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// newAuthority makes the certificate authority, and stores what it takes the roots
// to be where the store has nothing of them. more says who joins without our tokens.
func newAuthority(ctx context.Context, cfg *Config, st *store.Store, more ca.Config) (*ca.Authority, error) {
	keep, err := ca.Seal(st, cfg.KeyEncryptionFile)
	if err != nil {
		return nil, err
	}
	for {
		a, err := ca.New(ctx, ca.Config{
			TrustDomain: cfg.TrustDomain, LeafTTL: cfg.LeafTTL, Hosts: cfg.hosts(), Keep: keep, Tokens: st, Log: cfg.Log.Named("ca"),
			Account: more.Account, Others: more.Others, IDs: more.IDs,
			Files: ca.Files{Cert: cfg.CACertFile, Key: cfg.CAKeyFile, Chain: cfg.CAChainFile}, Roots: st.State().Roots,
		})
		if err != nil {
			return nil, err
		}
		a.SetRevoked(st.State().Revoked)
		known := a.Known()
		if known.Revision > 0 || known.Signs == "" {
			return a, nil
		}
		err = st.SetRoots(ctx, known)
		if err == nil {
			_, err = a.Use(ctx, st.State().Roots)
			return a, err
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
		if err := st.Sync(ctx); err != nil { // another control plane began this mesh
			return nil, err
		}
	}
}

// followTrust takes over what the store says of roots and revocations. It comes
// before proxies are told.
func (p *plane) followTrust(ctx context.Context, change *store.Change) {
	if change.Revoked {
		p.ca.SetRevoked(change.State.Revoked)
		if n := p.streams.recheck(p.ca); n > 0 {
			p.log.Warn("streams of proxies are cut", zap.String("reason", "revoked"), zap.Int("streams", n))
		}
	}
	if !change.Roots {
		return
	}
	if _, err := p.ca.Use(ctx, change.State.Roots); err != nil {
		p.log.Error("what the store says of the roots cannot be taken over; what was in force stays", zap.Error(err))
	}
	if r := change.State.Roots.Rotation; r != nil {
		p.log.Info("rotation of the root", zap.Int("number", r.Number), zap.String("stage", r.Stage), zap.String("new", r.New))
	}
	p.store.TellNow()
}

// Revocations implements api.Trust.
func (p *plane) Revocations() []policy.Revocation { return p.store.State().Revoked }

// Revoke implements api.Trust.
func (p *plane) Revoke(ctx context.Context, r policy.Revocation, ttl time.Duration) (policy.Revocation, error) {
	now := time.Now()
	// Both name join tokens too, which last for longer than any certificate.
	until := now.Add(cmp.Or(ttl, ca.MaxTokenTTL))
	r.Since, r.Until = unix(now), unix(until)
	if err := p.store.Revoke(ctx, r); err != nil {
		return r, err
	}
	p.log.Warn("revoked", zap.Stringer("what", &r), zap.Time("until", until), zap.String("reason", r.Reason))
	return r, nil
}

// Lift implements api.Trust.
func (p *plane) Lift(ctx context.Context, id string) error {
	err := p.store.Lift(ctx, id)
	if err == nil {
		p.log.Warn("revocation lifted", zap.String("id", id))
	}
	return err
}

// dutyEvery is how often the control plane that leads looks after trust.
const dutyEvery = time.Second

// keepTrust ends revocations when their time is over and takes rotations on, in the
// control plane that leads.
func (p *plane) keepTrust(ctx context.Context) error {
	tick := time.NewTicker(dutyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p.endRevocations(ctx, time.Now())
		if err := p.takeRotationOn(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrConflict) {
			p.log.Warn("the rotation of the root could not be taken on; trying again", zap.Error(err))
		}
	}
}

func (p *plane) endRevocations(ctx context.Context, now time.Time) {
	for _, r := range p.store.State().Revoked {
		if r.Until > unix(now) {
			continue
		}
		if err := p.store.Lift(ctx, r.ID()); err != nil && !errors.Is(err, store.ErrNotFound) {
			p.log.Warn("a revocation whose time is over could not be removed; trying again", zap.String("id", r.ID()), zap.Error(err))
			return
		}
		p.log.Info("the time of a revocation is over", zap.Stringer("what", &r))
	}
}

// conflict is an error that says that a step cannot be taken as things are.
type conflict struct{ error }

func (c conflict) Unwrap() error        { return c.error }
func (c conflict) Is(target error) bool { return target == policy.ErrExists }

func asConflict(err error) error {
	if errors.Is(err, ca.ErrRotation) || errors.Is(err, ca.ErrRevoked) {
		return conflict{err}
	}
	return err
}

// Rotate implements api.Trust.
func (p *plane) Rotate(ctx context.Context) error {
	next, err := p.ca.Begin(ctx)
	if err != nil {
		return asConflict(err)
	}
	return p.store.SetRoots(ctx, next)
}

// Abort implements api.Trust.
func (p *plane) Abort(ctx context.Context) error {
	next, err := ca.Abort(p.store.State().Roots, time.Now())
	if err != nil {
		return asConflict(err)
	}
	return p.store.SetRoots(ctx, next)
}

// GoOn implements api.Trust.
func (p *plane) GoOn(ctx context.Context) ([]api.ProxyBehind, error) {
	roots := p.store.State().Roots
	if !roots.Rotation.Running() {
		return nil, conflict{fmt.Errorf("%w: none is under way", ca.ErrRotation)}
	}
	view := p.rotationView(roots.Rotation)
	var ids []string
	for _, b := range view.Behind {
		ids = append(ids, b.ID)
	}
	return view.Behind, p.store.SetRoots(ctx, ca.Advance(roots, ids, time.Now()))
}

// takeRotationOn takes a rotation to its next stage when all have followed.
func (p *plane) takeRotationOn(ctx context.Context) error {
	roots := p.store.State().Roots
	if !roots.Rotation.Running() {
		return nil
	}
	if view := p.rotationView(roots.Rotation); len(view.Behind) > 0 || view.Followed < view.Proxies {
		return nil
	}
	return p.store.SetRoots(ctx, ca.Advance(roots, nil, time.Now()))
}

// step names a stage of a rotation, for control planes to tell which they speak of.
func step(r *policy.Rotation) string {
	if !r.Running() {
		return ""
	}
	return fmt.Sprintf("%d/%s", r.Number, r.Stage)
}

// toldRotation is what this control plane tells the others of the proxies that are
// attached to it.
func (p *plane) toldRotation() store.MemberRotation {
	r := p.store.State().Roots.Rotation
	out := store.MemberRotation{Step: step(r)}
	if out.Step == "" {
		return out
	}
	known := p.pub.Proxies()
	for i := range known {
		if !known[i].Attached {
			continue
		}
		if why := ca.Behind(r, &known[i].Report); why == "" {
			out.Followed = append(out.Followed, known[i].ID)
		} else if len(out.Behind) < maxTold {
			out.Behind = append(out.Behind, store.Refusal{Proxy: known[i].ID, Type: "rotation", Reason: why})
		}
	}
	return out
}

// breaks tells what going on does to a proxy that is behind.
func breaks(stage string) string {
	if stage == policy.StageTrust {
		return "it refuses all peers and the control plane as soon as they have certificates under the new root, until it joins anew with a new token"
	}
	return "all peers and the control plane refuse its certificate, until it joins anew with a new token"
}

// rotationView puts together what all control planes know of their proxies. One that
// nobody speaks for is behind.
func (p *plane) rotationView(r *policy.Rotation) *api.RotationView {
	v := &api.RotationView{
		Number: r.Number, Stage: r.Stage, Old: append([]string{}, r.Old...), New: r.New, Started: r.Started, Since: r.Since,
		Behind: []api.ProxyBehind{}, Left: append([]string{}, r.Left...),
	}
	if !r.Running() {
		return v
	}
	followed, why := map[string]bool{}, map[string]string{}
	note := func(m store.MemberRotation) {
		if m.Step != step(r) {
			return
		}
		for _, id := range m.Followed {
			followed[id] = true
		}
		for _, b := range m.Behind {
			why[b.Proxy] = b.Reason
		}
	}
	note(p.toldRotation())
	for _, m := range p.store.KnownMembers() {
		if m.Name != p.cfg.name() {
			note(m.Rotation)
		}
	}
	for known := range p.store.State().Proxies.All() {
		v.Proxies++
		if followed[known.ID] && why[known.ID] == "" {
			v.Followed++
			continue
		}
		if len(v.Behind) < maxTold {
			v.Behind = append(v.Behind, api.ProxyBehind{
				ProxyName: api.ProxyName{ID: known.ID, Namespace: known.Service.Namespace, ServiceName: known.Service.Name},
				Reason:    cmp.Or(why[known.ID], "is not connected, or its control plane has not told of it yet"), Breaks: breaks(r.Stage),
			})
		}
	}
	return v
}
