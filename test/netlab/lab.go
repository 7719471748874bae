// Package netlab makes network namespaces joined by a bridge, for tests and the demo.
// What runs in them, and how traffic is redirected there, it leaves to others.
//
// A [Lab] is one bridge, in a namespace of its own, and any number of hosts: a
// [Host] is a network namespace with one interface on that bridge. The namespace
// of the calling process is never changed. The namespaces are named, so that
// `ip netns exec` and `nsenter --net=/run/netns/NAME` find them.
//
// Making namespaces needs CAP_SYS_ADMIN and CAP_NET_ADMIN. [Main] and [Reexec]
// get them for a user who is not root, in a user namespace.
package netlab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxHosts is how many hosts fit beside the bridge, which takes the last of the 254 addresses.
const maxHosts = 253

// Options adjusts a Lab. The zero value is ready for use.
type Options struct {
	// ID is the middle part of the namespaces' names, "w-<ID>-<host>". Empty
	// means a random one. Two labs of one ID cannot be open at a time.
	ID string
	// Nameserver is who the Go resolver of a Host asks. The zero value means
	// port 53 of the bridge, where nothing listens unless a test does so or
	// the query is redirected on its way.
	Nameserver netip.AddrPort
}

// Lab is a bridge and its hosts. All methods may be called from many goroutines.
type Lab struct {
	id         string
	nameserver netip.AddrPort
	bridge     *Host
	links      *netlink.Handle // netlink in the bridge's namespace

	mu      sync.Mutex // guards what follows
	hosts   []*Host
	broken  int // partitions made, for their names
	closed  bool
	closeEr error
}

// Open makes a Lab with no hosts yet. The caller closes it; what a failed Open
// had made is removed. ctx only bounds the call.
func Open(ctx context.Context, opt Options) (*Lab, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("netlab: %w", err)
	}
	if err := prepareRunDir(); err != nil {
		return nil, fmt.Errorf("netlab: prepare %s: %w%s", runDir, err, hint(err))
	}
	l := &Lab{id: opt.ID, nameserver: opt.Nameserver}
	ns, err := l.makeBridgeNamespace()
	if err != nil {
		return nil, fmt.Errorf("netlab: make a network namespace: %w%s", err, hint(err))
	}
	l.bridge = &Host{lab: l, name: "bridge", ns: ns, addr4: hostAddr4(254), addr6: hostAddr6(254)}
	if !l.nameserver.IsValid() {
		l.nameserver = netip.AddrPortFrom(l.bridge.addr4, 53)
	}
	if err := l.setUpBridge(); err != nil {
		return nil, errors.Join(fmt.Errorf("netlab: set up the bridge: %w", err), l.Close())
	}
	return l, nil
}

// makeBridgeNamespace claims the lab's ID by making its first namespace.
func (l *Lab) makeBridgeNamespace() (*namespace, error) {
	if l.id != "" {
		return makeNamespace("w-" + l.id + "-bridge")
	}
	for {
		var b [3]byte
		_, _ = rand.Read(b[:]) // never fails, see its documentation
		l.id = hex.EncodeToString(b[:])
		ns, err := makeNamespace("w-" + l.id + "-bridge")
		if !errors.Is(err, os.ErrExist) {
			return ns, err
		}
	}
}

// bridgeName is the bridge's interface name.
const bridgeName = "br0"

func (l *Lab) setUpBridge() error {
	var err error
	if l.links, err = netlink.NewHandleAt(l.bridge.ns.handle(), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	// Snooping would drop neighbour discovery until a querier appears, which never does.
	snoop := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &snoop}
	if err := l.links.LinkAdd(br); err != nil {
		return fmt.Errorf("add %s: %w", bridgeName, err)
	}
	if err := l.bridge.Do(quietSysctls); err != nil {
		return err
	}
	if err := l.bridge.address(l.links, bridgeName); err != nil {
		return err
	}
	// With forwarding on, an address that no host has is answered with ICMP
	// "unreachable"; with it off a test would wait for its own timeout.
	return l.bridge.Do(func() error {
		return errors.Join(sysctl("net/ipv4/ip_forward", "1"), sysctlIfThere("net/ipv6/conf/all/forwarding", "1"))
	})
}

// Host adds a host to the lab: namespace "w-<id>-<name>", one interface eth0
// with an IPv4 and an IPv6 address that may be used at once, a default route by
// the bridge, loopback up. name is 1 to 20 of a-z, 0-9 and "-", used once.
func (l *Lab) Host(name string) (*Host, error) {
	if len(name) < 1 || len(name) > 20 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("netlab: host name %q: want 1 to 20 of a-z, 0-9 and -", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("netlab: host %s: %w", name, errClosed)
	}
	n := len(l.hosts) + 1
	if n > maxHosts {
		return nil, fmt.Errorf("netlab: host %s: a lab has room for %d hosts", name, maxHosts)
	}
	ns, err := makeNamespace("w-" + l.id + "-" + name)
	if err != nil {
		return nil, fmt.Errorf("netlab: host %s: make its namespace: %w", name, err)
	}
	h := &Host{lab: l, name: name, ns: ns, addr4: hostAddr4(n), addr6: hostAddr6(n)}
	l.hosts = append(l.hosts, h) // from here on Close removes it
	if err := h.join(fmt.Sprintf("p%d", n)); err != nil {
		return nil, fmt.Errorf("netlab: host %s: %w", name, err)
	}
	return h, nil
}

// Bridge is the namespace of the bridge as a Host: interface br0 there sees all
// traffic between the hosts, and what listens there can be reached from all of them.
func (l *Lab) Bridge() *Host { return l.bridge }

// ID is the lab's part of the namespaces' names.
func (l *Lab) ID() string { return l.id }

var errClosed = errors.New("the lab is closed")

// Close ends every process that is still in one of the lab's namespaces (with
// SIGKILL), and removes namespaces and interfaces. The process that calls it is
// spared, but its open sockets in a namespace keep that namespace's kernel side
// alive, without a name. Calling it again returns what the first call did.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.closeEr
	}
	l.closed = true
	all := append([]*Host{l.bridge}, l.hosts...)
	var errs []error
	if err := endProcesses(all); err != nil {
		errs = append(errs, fmt.Errorf("netlab: end processes: %w", err))
	}
	// The pairs go before the namespaces: a namespace that a socket keeps alive
	// would otherwise keep its interface too.
	if l.links != nil {
		for n := range l.hosts {
			if err := deleteLink(l.links, fmt.Sprintf("p%d", n+1)); err != nil {
				errs = append(errs, fmt.Errorf("netlab: host %s: %w", l.hosts[n].name, err))
			}
		}
		l.links.Close()
	}
	for _, h := range all {
		if err := h.ns.remove(); err != nil {
			errs = append(errs, fmt.Errorf("netlab: host %s: %w", h.name, err))
		}
	}
	l.closeEr = errors.Join(errs...)
	return l.closeEr
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			return nil // the host's set-up had failed before
		}
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := h.LinkDel(link); err != nil {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// TB is what New needs of *testing.T, so that this package does not bring the
// testing package into programs.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// New opens a Lab that the test's cleanup closes. The test fails when something
// could not be removed or is left behind.
func New(t TB) *Lab {
	t.Helper()
	l, err := Open(t.Context(), Options{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		for _, left := range leftovers(l) {
			t.Errorf("the lab left %s behind", left)
		}
	})
	return l
}

// MustHost is Host for tests: it fails the test instead of returning an error.
func (l *Lab) MustHost(t TB, name string) *Host {
	t.Helper()
	h, err := l.Host(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return h
}
