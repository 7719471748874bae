// Package shortcut lets the kernel hand bytes between an app and the proxy beside it from socket to socket, past TCP/IP.
// Which connections go through the proxy it leaves to the iptables rules of package redirect, and what the proxy does with them to the proxy.
//
// Three eBPF programs do it. One sees connections being established and puts the
// two ends of a local hop into a map of sockets (establish.go); one is asked for
// each message that such an end sends, and hands it to the other end (hand.go);
// one keeps kernel TLS away from them (refuse.go). They are one set for the whole
// machine, attached to a cgroup and kept by files below /sys/fs/bpf/weir, and act
// only in the network namespaces that have an entry in a map. [Install] and
// [Remove] add and remove that of the calling thread's namespace.
//
// # What is paired
//
// The app's end of a connection that the rules redirected to the proxy, or that
// was made to the proxy's outbound port on purpose, and the proxy's end of it; and
// the proxy's connection to its own app, known by its mark, and the app's end.
// Everything else, the proxy's connections to others included, is never in the
// map and keeps the plain path.
//
// NAT rewrites addresses and may rewrite ports, so the ends know each other by the
// two initial sequence numbers (RFC 9293 section 3.4.1), which it leaves alone: 64
// bits chosen by two ends of one kernel. A namespace is known by its cookie, which
// the kernel never uses again.
//
// # Order
//
// A receiver reads what was handed to it before what came through TCP. So each
// direction of a connection decides at its first message: handed from then on, if
// the other end is in the map, else plain for good. From handed to plain is
// allowed, since that order is right; back is not.
//
// # Bounds
//
// TCP's window does not bound what is handed over. hand.go looks how much the
// other end has not read: above [Unread] a message is the last that is handed
// over, and the window bounds the rest. The proxy does not let it come to that
// with what it sends: it asks the kernel what its app has not read (proxy/loop).
package shortcut

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Config says whose connections take the short cut.
type Config struct {
	OutboundPort uint16 // where the proxy takes connections of its app
	InboundMark  uint32 // socket mark of the proxy's connections to its app; 0 for none
	Cgroup       string // directory of cgroup v2 whose processes take part; empty for the root that is mounted here
}

// Priority is the SO_PRIORITY of the proxy's ends, by which it knows them. It
// spells "weir".
const Priority = 0x77656972

// Unread is how many bytes may wait at one end before no more are handed to it,
// but for the message that crosses the bound, which is at most 576 KiB. It is
// what TCP allows a connection by default (tcp_rmem, 4 to 6 MiB).
const Unread = 4 << 20

// Figures are what the programs have counted.
type Figures struct {
	// Of the namespace.
	Candidates uint64 // ends that dialled and were put into the map
	Paired     uint64 // ends that were dialled and found such a one
	Full       uint64 // ends for which there was no room
	// Of all namespaces together.
	Handed uint64 // messages handed over
	Plain  uint64 // messages of ends in the map that went through TCP
	Last   uint64 // messages that were the last to be handed over, because too much was unread
}

// Result says what Install or Remove did.
type Result struct {
	Changed bool     // false: everything was so already
	Cgroup  string   // where the programs are attached
	Notes   []string // what the operator should know
}

// cookie is the kernel's number for the network namespace of the calling thread.
func cookie() ([]byte, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(fd)
	id, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("ask for the network namespace's cookie (Linux 5.14): %w", err)
	}
	return binary.NativeEndian.AppendUint64(nil, id), nil
}

// Install has the connections of the calling thread's network namespace take the
// short cut from now on; those that stand go on as they are. Where the programs
// are not there yet it loads them, tries them in a namespace that exists for the
// moment, and attaches them. Calling it again changes nothing, or mends what
// differs. On an error nothing is left behind that was not there before.
func Install(cfg Config) (Result, error) {
	if cfg.OutboundPort == 0 {
		return Result{}, errors.New("shortcut: OutboundPort: 0 is not a port")
	}
	res, err := install(cfg)
	if err != nil {
		return Result{}, fmt.Errorf("shortcut: install: %w", explain(err))
	}
	return res, nil
}

func install(cfg Config) (res Result, err error) {
	self, err := cookie()
	if err != nil {
		return res, err
	}
	if err := mayLoad(); err != nil {
		return res, err
	}
	if res.Cgroup, res.Notes, err = findCgroup(cfg.Cgroup); err != nil {
		return res, err
	}
	at, err := openPins(true)
	if err != nil {
		return res, err
	}
	// With an entry or without, what no namespace uses goes.
	defer func() { err = errors.Join(err, at.removeUnused(), at.close()) }()
	k, err := readKernel()
	if err != nil {
		return res, err
	}
	s, made, err := at.set(k, res.Cgroup)
	if err != nil {
		return res, err
	}
	defer s.close()
	if made {
		if err := s.try(res.Cgroup, &res.Notes); err != nil {
			return res, err
		}
	}
	changed, err := s.put(self, cfg)
	if err != nil {
		return res, err
	}
	// Last: what an older weir-init had installed holds until here.
	older, err := at.forget(self, s.name)
	res.Changed = made || changed || older
	return res, err
}

// Remove takes the calling thread's network namespace out, and with the last one
// the programs and all that Install made. Connections that take the short cut
// already go on doing so until they end: the kernel keeps what they need. Where
// there is nothing to remove it needs no rights.
func Remove() (res Result, err error) {
	at, err := openPins(false)
	if err != nil || at == nil {
		return res, wrap("remove", err)
	}
	defer func() { err = wrap("remove", errors.Join(err, at.close())) }()
	self, err := cookie()
	if err != nil {
		return res, err
	}
	res.Changed, err = at.forget(self, "")
	return res, errors.Join(err, at.removeUnused())
}

// Look gives the figures of the calling thread's network namespace, and whether
// it is as cfg wants it: nil, or what differs. ErrNone is no entry at all.
func Look(cfg Config) (f Figures, differs, err error) {
	at, err := openPins(false)
	if err != nil {
		return f, nil, wrap("look", err)
	}
	if at == nil {
		return f, ErrNone, nil
	}
	defer func() { err = wrap("look", errors.Join(err, at.close())) }()
	self, err := cookie()
	if err != nil {
		return f, nil, err
	}
	return at.look(self, cfg)
}

// ErrNone says that the namespace has no short cut.
var ErrNone = errors.New("none is installed")

func wrap(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("shortcut: %s: %w", step, explain(err))
}

// explain adds what the user can do about the commonest failure.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w; it needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN in the machine's first user namespace, which root of the host has", err)
	}
	return err
}
