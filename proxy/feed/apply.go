package feed

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// apply puts a response in force, resource by resource: one that is refused does
// not keep the others out. The error says why some were.
func (f *Feed) apply(resp *wire.DeltaDiscoveryResponse) error {
	k, ok := kindOf(resp.GetTypeUrl())
	if !ok {
		return fmt.Errorf("type %q was not asked for", resp.GetTypeUrl())
	}
	f.hooks.Lock()
	defer f.hooks.Unlock()
	var errs []error
	for _, res := range resp.GetResources() {
		r := resource{k, res.GetName()}
		if err := f.take(r, res.GetVersion(), res.GetResource()); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r, err))
		}
	}
	for _, name := range resp.GetRemovedResources() {
		f.gone(resource{k, name})
	}
	f.checkReady()
	return errors.Join(errs...)
}

// take puts one resource in force, if its hook agrees. It needs f.hooks.
func (f *Feed) take(r resource, version string, body *anypb.Any) error {
	f.mu.RLock()
	s := f.subs.all[r]
	same := s != nil && s.raw != nil && bytes.Equal(s.raw, body.GetValue())
	f.mu.RUnlock()
	if s == nil {
		return nil // unsubscribed meanwhile
	}
	var got decoded
	var err error
	if !same {
		if got, err = f.decode(r, body); err == nil {
			err = f.hook(r, got)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.link.rejected[r.String()] = err.Error()
		s.settle(nil)
		return err
	}
	delete(f.link.rejected, r.String())
	if same && s.version == version {
		return nil
	}
	s.version = version
	poke(f.changed)
	if same {
		return nil
	}
	s.raw = bytes.Clone(body.GetValue())
	if got.svc != nil {
		f.subs.setVirtual(s, [2]netip.Addr{got.svc.Virtual4, got.svc.Virtual6})
	}
	s.settle(&answer{known: true, service: got.found})
	return nil
}

// settle notes an answer; nil answers only who waits for the first, with no.
func (s *sub) settle(a *answer) {
	first := s.answer.Load() == nil
	if a == nil && first {
		a = &answer{}
	}
	if a != nil {
		s.answer.Store(a)
	}
	if first {
		close(s.answered)
	}
}

// decoded is one resource as policy has it.
type decoded struct {
	mesh    policy.Mesh
	inbound policy.Inbound
	svc     *policy.Service
	found   policy.ServiceName
}

func (f *Feed) decode(r resource, body *anypb.Any) (d decoded, err error) {
	if body.GetTypeUrl() != typeURLs[r.kind] {
		return d, fmt.Errorf("is a %q", body.GetTypeUrl())
	}
	name := r.name
	switch r.kind {
	case meshKind:
		m := &wire.Mesh{}
		if err = proto.Unmarshal(body.Value, m); err == nil {
			d.mesh, err = m.Policy()
		}
	case inboundKind:
		m := &wire.Inbound{}
		if err = proto.Unmarshal(body.Value, m); err == nil {
			d.inbound, err = m.Policy()
		}
		name = d.inbound.Service.String()
	case serviceKind:
		m := &wire.Service{}
		if err = proto.Unmarshal(body.Value, m); err == nil {
			d.svc, err = m.Policy()
		}
		if d.svc != nil {
			name = d.svc.Name.String()
		}
	case lookupKind:
		m := &wire.Lookup{}
		if err = proto.Unmarshal(body.Value, m); err == nil {
			d.found = m.GetService().Policy()
			err = d.found.Validate()
		}
	}
	if err == nil && name != r.name {
		err = fmt.Errorf("is of %s", name)
	}
	return d, err
}

func (f *Feed) hook(r resource, d decoded) error {
	switch r.kind {
	case meshKind:
		return f.cfg.Hooks.OnMesh(d.mesh)
	case inboundKind:
		return f.cfg.Hooks.OnInbound(d.inbound)
	case serviceKind:
		return f.cfg.Hooks.OnService(d.svc.Name, d.svc)
	}
	return nil
}

// gone takes note that a resource does not exist (any more). It needs f.hooks.
// A mesh and our own Inbound always exist: what they were stays in force.
func (f *Feed) gone(r resource) {
	if r.kind == meshKind || r.kind == inboundKind {
		f.cfg.Log.Warn("the control plane removed what always exists; the last state stays in force", zap.Stringer("resource", r))
		return
	}
	f.mu.RLock()
	s := f.subs.all[r]
	f.mu.RUnlock()
	if s == nil {
		return
	}
	if a := s.answer.Load(); r.kind == serviceKind && a != nil && a.known {
		f.dropService(s.service())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.link.rejected, r.String())
	if s.raw != nil {
		poke(f.changed)
	}
	s.version, s.raw = "", nil
	if r.kind == serviceKind {
		f.subs.setVirtual(s, [2]netip.Addr{})
	}
	s.settle(&answer{})
}

func (f *Feed) dropService(name policy.ServiceName) {
	if err := f.cfg.Hooks.OnService(name, nil); err != nil {
		f.cfg.Log.Warn("a service that is gone was not let go", zap.Stringer("service", name), zap.Error(err))
	}
}

func (f *Feed) checkReady() {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, r := range []resource{{meshKind, meshName}, {inboundKind, f.cfg.Service.String()}} {
		if a := f.subs.all[r].answer.Load(); a == nil || !a.known {
			return
		}
	}
	select {
	case <-f.ready:
	default:
		close(f.ready) // only here, under f.hooks
	}
}

// forgetIdle unsubscribes from what was not used for long.
func (f *Feed) forgetIdle() {
	f.hooks.Lock()
	defer f.hooks.Unlock()
	before := f.cfg.Now().Add(-f.cfg.IdleAfter)
	f.mu.Lock()
	connected := f.link.down != nil
	forget := f.subs.idle(before, connected)
	for _, s := range forget {
		f.subs.remove(s)
		delete(f.link.rejected, s.String())
		if connected {
			f.queue.unsubscribe(s.resource)
		}
	}
	f.mu.Unlock()
	if len(forget) == 0 {
		return
	}
	poke(f.wake)
	poke(f.changed)
	for _, s := range forget {
		if a := s.answer.Load(); s.kind == serviceKind && a != nil && a.known {
			f.dropService(s.service())
		}
		f.mu.Lock()
		s.settle(nil) // nobody will answer those who still wait
		f.mu.Unlock()
	}
}
