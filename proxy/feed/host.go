package feed

import (
	"context"

	"github.com/weir-mesh/weir/policy"
)

// ServiceFor tells which service stands for a host outside the mesh, by its name
// in lower case without a final dot. It waits like Service, and remembers also
// that a name is nobody's.
func (f *Feed) ServiceFor(ctx context.Context, host string) (policy.ServiceName, bool) {
	s := f.useHost(host)
	if s == nil {
		s = f.subscribe(resource{lookupKind, host})
	}
	a := f.wait(ctx, s)
	return a.service, a.known
}

func (f *Feed) useHost(host string) *sub {
	f.mu.RLock()
	defer f.mu.RUnlock()
	s := f.subs.hosts[host]
	if s != nil {
		s.used.Store(f.cfg.Now().UnixNano())
	}
	return s
}
