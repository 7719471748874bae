package relay

import (
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

const tcpClose = unix.BPF_TCP_CLOSE // TCP_CLOSE of the kernel's tcp_states.h; bpf only carries it

// unsent is the number of bytes that the peer's kernel has not acknowledged, 0
// where that cannot be known or no longer matters.
func (s *Session) unsent(side Side) int {
	fd := s.ends[side].Socket().FD()
	// A reset socket keeps the count it had.
	if fd < 0 || tcpState(fd) == tcpClose {
		return 0
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// wasReset tells whether a stream that seemed to end was in truth reset. The
// kernel reports a reset once, to whichever call comes first; when a write took
// it, the read sees a plain end, and a cut stream would be passed on as whole.
func (s *Session) wasReset(side Side) bool {
	c, bare := beneath(s.ends[side]).(*loop.Conn)
	if !bare || c.Closed() || !c.Hung() || s.finished[side] {
		return false // after our own half-close an orderly end leaves that state too
	}
	return tcpState(c.FD()) == tcpClose
}

// beneath is the stream that says how s ends: s itself, or what a layer that has
// no end of its own stands on. (TLS has one.)
func beneath(s loop.Stream) loop.Stream {
	for {
		layer, ok := s.(interface{ Beneath() loop.Stream })
		if !ok {
			return s
		}
		s = layer.Beneath()
	}
}

func tcpState(fd int) uint8 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return tcpClose
	}
	return info.State
}
