package loop

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never block, so the scheduler need not hear of them: telling
// it costs a twentieth of a microsecond each way. And those of x/sys that take or
// give addresses make a further call, for the protocol, and an allocation.

func rawRead(fd int, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), err
}

func rawWrite(fd int, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), err
}

func rawSendMore(fd int, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_MORE|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), err
}

func ignoringEINTR(fd int, b []byte, call func(int, []byte) (int, syscall.Errno)) (int, syscall.Errno) {
	for {
		n, err := call(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func rawSocket(family int) (int, syscall.Errno) {
	fd, _, err := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	return int(fd), err
}

func rawClose(fd int) syscall.Errno {
	_, _, err := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return err
}

func rawShutdown(fd, how int) syscall.Errno {
	_, _, err := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
	return err
}

func rawSetInt(fd, level, option, value int) syscall.Errno {
	v := int32(value)
	_, _, err := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&v)), 4, 0)
	return err
}

func rawEpollCtl(epoll, op, fd int, ev *unix.EpollEvent) syscall.Errno {
	_, _, err := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	return err
}

// rawEpollWait does not wait; an error is no event.
func rawEpollWait(epoll int, events []unix.EpollEvent) int {
	n, _, err := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if err != 0 {
		return 0
	}
	return int(n)
}

// sockaddr is an address of TCP as the kernel has it.
type sockaddr struct {
	raw unix.RawSockaddrInet6 // the larger of the two
	len uint32
}

func rawConnect(fd int, sa *sockaddr) syscall.Errno {
	_, _, err := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	return err
}

func rawAccept(fd int, sa *sockaddr) (int, syscall.Errno) {
	sa.len = unix.SizeofSockaddrInet6
	n, _, err := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)),
		unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	return int(n), err
}

func rawLocal(fd int, sa *sockaddr) syscall.Errno {
	sa.len = unix.SizeofSockaddrInet6
	_, _, err := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)))
	return err
}

func rawRemote(fd int, sa *sockaddr) syscall.Errno {
	sa.len = unix.SizeofSockaddrInet6
	_, _, err := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)))
	return err
}

// addrPort is the address; an IPv4 address is never in its mapped IPv6 form.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(make([]byte, 0, 2), s.raw.Port))
	switch s.raw.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port)
	case unix.AF_INET6:
		a := netip.AddrFrom16(s.raw.Addr).Unmap()
		if a.Is6() && s.raw.Scope_id != 0 {
			a = a.WithZone(zoneOf(s.raw.Scope_id))
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

// set puts an address in; false if it is none.
func (s *sockaddr) set(a netip.AddrPort) (family int, ok bool) {
	port := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(make([]byte, 0, 2), a.Port()))
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: ip.As4()}
		s.len = unix.SizeofSockaddrInet4
		return unix.AF_INET, true
	case ip.Is6():
		s.raw = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: ip.As16(), Scope_id: zoneID(ip.Zone())}
		s.len = unix.SizeofSockaddrInet6
		return unix.AF_INET6, true
	}
	return 0, false
}
