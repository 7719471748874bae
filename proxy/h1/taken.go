package h1

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// An upstream may close an idle connection at the moment a request is sent on it. The
// request may go to another, whatever its method, if it is certain that none of its
// bytes came into the server's hands. Of that the kernel knows two things:
//
//   - Which bytes were acknowledged (tcpi_bytes_acked, RFC 4898 section 4.1.2's
//     ThruOctetsAcked, where SYN counts as one). A FIN acknowledges all that its sender's
//     kernel had taken when it ended the connection.
//   - What came in: a FIN, or a reset alone (of which the kernel tells once, to a read or a write). A reset acknowledges nothing, as the
//     kernel does not look at what else it says: a server that has read the request
//     and then resets, before its delayed acknowledgement, looks as one that never got it.
//
// So it is certain after a FIN by which nothing of the request was acknowledged, and a
// reset behind it: the answer to bytes for which there was no socket any more. (A server
// that only ended its own direction acknowledges what comes then; it must not
// process it either, RFC 9112 section 9.6.) decisions/0015.

// counter is a connection that knows how many bytes it gave to its socket.
type counter interface{ Written() uint64 }

// written is how many bytes the socket was given.
func (u *Upstream) written() uint64 {
	if u.tls != nil {
		return u.tls.Written()
	}
	return u.wrote
}

// write is conn.Write, counted.
func (u *Upstream) write(b []byte) (int, error) {
	n, err := u.conn.Write(b)
	return u.gave(n, err)
}

// gave takes down what came of a write. For TLS n is not what the socket got.
func (u *Upstream) gave(n int, err error) (int, error) {
	u.wrote += uint64(n)
	u.cut = u.cut || err != nil && errors.Is(err, unix.ECONNRESET)
	return n, err
}

// fate is what became of a request on a connection that broke.
type fate uint8

const (
	inDoubt fate = iota // something of it may have been taken
	undecided
	refused // nothing was
)

// fateLimit is how long a reset is waited for. It takes a round trip, and an
// acknowledgement in its place a fifth of a second more at most.
const fateLimit = time.Second

// untaken reports whether it is certain that nothing of the request at hand was
// taken by the server's kernel. why is what the last read said. It may wait.
func (u *Upstream) untaken(why error) bool {
	if u.cut || errors.Is(why, unix.ECONNRESET) || u.conn.Socket().ShortCut() { // past TCP nothing is acknowledged
		return false
	}
	l := u.conn.Socket().Loop()
	wait := 100 * time.Microsecond
	for began := l.Age(); ; wait *= 2 {
		if f := u.fate(); f != undecided {
			return f == refused
		}
		if l.Age()-began >= fateLimit || l.Closing() {
			return false
		}
		l.Sleep(wait)
	}
}

// fate asks the kernel.
func (u *Upstream) fate() fate {
	switch n, err := u.peek(); {
	case err == unix.EAGAIN: // TLS has ended, the connection is about to
		return undecided
	case n != 0 || err != nil: // an answer, or a reset without FIN before it
		return inDoubt
	}
	info, err := unix.GetsockoptTCPInfo(u.conn.Socket().FD(), unix.IPPROTO_TCP, unix.TCP_INFO)
	switch {
	case err != nil, info.Bytes_acked == 0, info.Bytes_acked > u.before+1: // 0: a kernel that does not tell
		return inDoubt
	case info.State == unix.BPF_TCP_CLOSE:
		return refused
	case info.State == unix.BPF_TCP_CLOSE_WAIT:
		return undecided
	}
	return inDoubt
}
