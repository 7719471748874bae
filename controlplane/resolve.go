package controlplane

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/controlplane/meshfile"
	"github.com/weir-mesh/weir/policy"
)

const (
	// lookupTimeout bounds one look-up, resolveTimeout all of a file's together: a
	// name server that is away holds up a change of the file for no longer.
	lookupTimeout  = 3 * time.Second
	resolveTimeout = 5 * time.Second
	lookupsAtOnce  = 16
)

// resolver finds the addresses of a mesh file's instances. It is used by one
// goroutine at a time.
type resolver struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	last   map[string][]netip.Addr // by host: what it led to
}

func newResolver() resolver {
	return resolver{last: map[string][]netip.Addr{}, lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}}
}

// answer is what a look-up gave.
type answer struct {
	addrs []netip.Addr
	err   error
}

// resolve gives the endpoints that the file's instances are, and says which names
// lead nowhere. Those keep the addresses they had, here or in the store: traffic is
// not to depend on a name server. Where there were none there is no endpoint yet.
func (r *resolver) resolve(ctx context.Context, f *meshfile.File, stored func(*meshfile.Instance) []netip.Addr) (endpoints []policy.Endpoint, unresolved []string) {
	found := r.lookUp(ctx, f)
	next := map[string][]netip.Addr{}
	for i := range f.Instances {
		inst := &f.Instances[i]
		if a, fixed := inst.Addr(); fixed {
			endpoints = append(endpoints, inst.EndpointAt(a))
			continue
		}
		addrs := found[inst.Host].addrs
		if err := found[inst.Host].err; err != nil {
			if addrs = r.last[inst.Host]; len(addrs) == 0 {
				addrs = stored(inst)
			}
			unresolved = append(unresolved, whatOf(inst, addrs, err))
		}
		if len(addrs) > 0 {
			next[inst.Host] = addrs
		}
		for _, a := range addrs {
			endpoints = append(endpoints, inst.EndpointAt(a))
		}
	}
	r.last = next
	return endpoints, unresolved
}

func whatOf(inst *meshfile.Instance, addrs []netip.Addr, err error) string {
	what := "it is no endpoint yet"
	if len(addrs) > 0 {
		what = "it keeps its last addresses"
	}
	return fmt.Sprintf("%s of %s: %v; %s", inst.Prefix(), inst.Endpoint.Service(), err, what)
}

// lookUp asks for every name once.
func (r *resolver) lookUp(ctx context.Context, f *meshfile.File) map[string]answer {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var mu sync.Mutex // guards out
	out := map[string]answer{}
	g := &errgroup.Group{}
	g.SetLimit(lookupsAtOnce)
	for i := range f.Instances {
		inst := &f.Instances[i]
		mu.Lock()
		_, asked := out[inst.Host]
		if _, fixed := inst.Addr(); !fixed && !asked {
			out[inst.Host] = answer{}
		}
		mu.Unlock()
		if _, fixed := inst.Addr(); fixed || asked {
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			addrs, err := r.lookup(ctx, inst.Host)
			addrs = usable(addrs)
			if err == nil && len(addrs) == 0 {
				err = fmt.Errorf("%s has no address that an endpoint can have", inst.Host)
			}
			mu.Lock()
			defer mu.Unlock()
			out[inst.Host] = answer{addrs, err}
			return nil
		})
	}
	_ = g.Wait() // look-ups give no error: it is part of the answer
	return out
}

// usable are the IPv4 addresses of a name, or if it has none the IPv6 ones: with
// both, a host with two addresses would count twice, and stand twice for the same
// failure. In order, so that the same answer is the same.
func usable(addrs []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		switch {
		case a.IsUnspecified() || a.IsMulticast() || policy.IsVirtual(a):
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
	}
	if len(v4) == 0 {
		v4 = v6
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	return slices.Compact(v4)
}
