package netlab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is one network namespace without a lab: nothing joins it to others.
type Namespace struct {
	ns    *namespace
	given string // the file that it was opened by; "" for one that MakeNamespace made
}

// MayMake tells whether this process has the capabilities that namespaces take,
// CAP_SYS_ADMIN and CAP_NET_ADMIN.
func MayMake() bool { return mayMakeNamespaces() }

// MakeNamespace makes a network namespace called name, as `ip netns add` does.
func MakeNamespace(name string) (*Namespace, error) {
	if err := prepareRunDir(); err != nil {
		return nil, fmt.Errorf("netlab: prepare %s: %w%s", runDir, err, hint(err))
	}
	ns, err := makeNamespace(name)
	if err != nil {
		return nil, fmt.Errorf("netlab: make the namespace %s: %w%s", name, err, hint(err))
	}
	return &Namespace{ns: ns}, nil
}

// OpenNamespace opens the namespace that the file at path stands for.
func OpenNamespace(path string) (*Namespace, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("netlab: open the namespace %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("netlab: look at the namespace %s: %w", path, err), fd.Close())
	}
	return &Namespace{ns: &namespace{name: path, inode: st.Ino, fd: fd}, given: path}, nil
}

// Path is the file that stands for the namespace.
func (n *Namespace) Path() string {
	if n.given != "" {
		return n.given
	}
	return n.ns.path()
}

// Handle is the namespace for netlink; it is valid until Close or Remove.
func (n *Namespace) Handle() netns.NsHandle { return n.ns.handle() }

// Inode tells the namespace from all others of the machine while it exists.
func (n *Namespace) Inode() uint64 { return n.ns.inode }

// Do calls f on a thread that is in the namespace, as Host.Do does.
func (n *Namespace) Do(f func() error) error { return n.ns.do(f) }

// Enter puts the calling thread into the namespace for good. The goroutine must
// have locked it, and never unlock it.
func (n *Namespace) Enter() error {
	if err := netns.Set(n.ns.handle()); err != nil {
		return fmt.Errorf("netlab: enter %s: %w", n.Path(), err)
	}
	return nil
}

// Close lets go of a namespace and leaves it as it is.
func (n *Namespace) Close() error {
	n.ns.mu.Lock()
	defer n.ns.mu.Unlock()
	if !n.ns.fd.IsOpen() {
		return nil
	}
	return n.ns.fd.Close()
}

// EndProcesses kills what runs in the namespace, but for this process, and waits
// until it is gone.
func (n *Namespace) EndProcesses() error { return endProcesses([]*Host{{ns: n.ns}}) }

// Remove takes away the name that MakeNamespace gave; the kernel removes the
// namespace with its last process and socket.
func (n *Namespace) Remove() error { return n.ns.remove() }

// RemoveNamespace ends what runs in the namespace called name, and removes it. That
// there is none is no error.
func RemoveNamespace(name string) error {
	path := (&namespace{name: name}).path()
	n, err := OpenNamespace(path)
	if err != nil {
		return unmountName(path) // a name that nothing is mounted on, or none
	}
	return errors.Join(n.EndProcesses(), n.Close(), unmountName(path))
}
