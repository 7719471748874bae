package relay

import (
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// urge sends text, its last byte as urgent data (RFC 9293 section 3.8.5).
func urge(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), []byte(text), unix.MSG_OOB, nil)
		return serr != unix.EAGAIN
	})
	if err != nil || serr != nil {
		t.Fatal(err, serr)
	}
}

// Urgent data is passed on in its place in the stream, as RFC 6093 section 6
// would have every application take it.
func TestUrgentDataKeepsItsPlace(t *testing.T) {
	for _, side := range []Side{Client, Upstream} {
		t.Run(side.String(), func(t *testing.T) {
			s := start(t, Config{})
			from, to := s.app, s.server
			if side == Upstream {
				from, to = to, from
			}
			for range 50 {
				send(t, from, "before")
				urge(t, from, "urgent!")
				send(t, from, "after")
				urge(t, from, "!")
				urge(t, from, "!")
				send(t, from, "the end")
				expect(t, to, "beforeurgent!after!!the end")
			}
		})
	}
}

// A splice stops at urgent data as if the stream had ended there.
func TestUrgentDataInALargeFlowIsNotItsEnd(t *testing.T) {
	s := start(t, Config{})
	bulk := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 4 {
			send(t, s.app, bulk)
			urge(t, s.app, "!")
		}
		s.app.CloseWrite()
	})
	for range 4 {
		expect(t, s.server, bulk)
		expect(t, s.server, "!")
	}
	expectEnd(t, s.server)
	wg.Wait()
	s.server.Close()
	s.wantEOF(t, 4*(8<<20+1), 0)
	if _, free := s.pipes(t); free == 0 {
		t.Error("the kernel did not splice: no pipe was ever made")
	}
}
