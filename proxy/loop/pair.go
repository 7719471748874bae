package loop

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Pair makes a connection within the process: one end on the loop, the other for
// goroutines. The error is the kernel's: most often no descriptor is left.
func (l *Loop) Pair() (*Conn, net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	f := os.NewFile(uintptr(fds[1]), "pair")
	far, err := net.FileConn(f) // which takes a duplicate
	_ = f.Close()
	if err != nil {
		unix.Close(fds[0])
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return l.Adopt(fds[0]), far, nil
}
