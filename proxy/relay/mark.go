package relay

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

const (
	// A relay that is faster than its sender is woken for every segment, and so
	// pays a wake-up, a window update and a push for 64 KiB; one that happens to
	// run late finds much and is cheap. The mark has the kernel wake it once
	// there is this much (SO_RCVLOWAT, socket(7)); an end, an error or a full
	// window wakes it all the same, tcp_epollin_ready in net/ipv4. One stream
	// cost 0.24 s/GiB without and 0.20 with it, HAProxy beside it 0.18.
	// Another part of the spread is not ours: on one P (GOMAXPROCS=1) the runtime
	// takes it away while the loop waits, and 0.20 becomes 0.27 in some runs.
	markBytes = 512 << 10
	// What stays below the mark is fetched after this long. It is the price: the
	// last bytes of a burst may come so much later.
	markWait = 2 * time.Millisecond
	// Only a flow that moved this much without such a wait gets the mark, and
	// twice as much after each. So large messages, one after another, pay the
	// price a few times and not each time.
	markAfter = 8 << 20
	markMost  = 16 // doublings
)

// mark is the low-water mark of a flow's source.
type mark struct {
	raised bool
	late   bool  // the flow runs because markWait passed
	waits  uint8 // how often bytes lay below the mark for so long, less what was forgiven
	steady int64 // bytes spliced since that happened, or was forgiven
}

// woken is told that the flow is about to look.
func (m *mark) woken(from *loop.Conn) {
	if m.raised && !from.Readable() {
		m.lower(from)
		m.late = true
	}
}

// filled is told what it found.
func (m *mark) filled(n int) {
	m.steady += int64(n)
	if m.late {
		m.late, m.waits, m.steady = false, min(m.waits+1, markMost), 0
	}
}

// drained is told that it found nothing, before the flow parks.
func (m *mark) drained(from *loop.Conn) {
	if m.late { // the sender paused: the next byte wakes, whenever it comes
		m.late = false
		return
	}
	need := int64(markAfter) << m.waits
	switch {
	case m.raised && m.waits > 0 && m.steady >= 2*need:
		m.waits, m.steady = m.waits-1, need/2 // forgiven, one at a time
	case m.raised:
	case m.steady < need:
		return
	case unix.SetsockoptInt(from.FD(), unix.SOL_SOCKET, unix.SO_RCVLOWAT, markBytes) != nil:
		return
	default:
		m.raised = true
	}
	_ = from.SetReadDeadline(from.Loop().Now().Add(markWait))
}

// lower has every byte wake the flow again.
func (m *mark) lower(from *loop.Conn) {
	if m.raised {
		m.raised = false
		_ = unix.SetsockoptInt(from.FD(), unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1)
		_ = from.SetReadDeadline(time.Time{})
	}
}
