package h2

import (
	"errors"
	"io"
	"time"

	"github.com/weir-mesh/weir/proxy/h2/hpack"
	"github.com/weir-mesh/weir/proxy/loop"
)

// link is a connection to an upstream. Each request on it has an Upstream.
type link struct {
	mux
	pool   *Pool
	nextID uint32
	open   int  // Upstreams that were given out and not given back
	most   int  // how many there may be
	used   bool // has carried a request
	gone   bool // takes no new ones
	asSaid bool // most is what the upstream said
	idle   time.Duration

	coming  *Upstream // whose head is being read
	tailing bool      // it is the trailer section
	scratch hpack.Head

	asked   bool // a PING of ours is not answered
	heard   time.Duration
	pinging bool // the timer is set
}

// untold is how many streams an upstream gets that has not yet said how many it
// allows, on this connection or one before: RFC 9113 section 6.5.2 recommends to allow
// no fewer. What it refuses is sent elsewhere.
const untold = 100

func newLink(cfg *Config, p *Pool, s loop.Stream) *link {
	k := &link{pool: p, nextID: 1}
	k.init(s, cfg, k)
	k.peerStreams, k.hears = p.allowed, true
	k.grew()
	k.idle, k.heard = k.l.Age(), k.l.Age()
	return k
}

// begin greets the upstream, in the same write as the first request.
func (k *link) begin() {
	out := append(k.room(), preface...)
	out = appendHeader(out, 18, frameSettings, 0, 0)
	out = appendSetting(out, settingPush, 0)
	out = appendSetting(out, settingWindow, k.cfg.StreamWindow)
	out = appendSetting(out, settingMaxHeadBytes, k.cfg.MaxHeadBytes)
	if more := k.cfg.connWindow() - defaultWindow; more > 0 {
		out = appendWindowUpdate(out, 0, more)
	}
	k.out = out
	k.conn.Park(k)
}

// fit reports whether a stream may be begun.
func (k *link) fit() bool { return !k.gone && k.dead == nil && k.nextID <= maxStreamID }

// Run is the reader.
func (k *link) Run() {
	k.heard = k.l.Age()
	if k.pull() {
		if k.mux.tend(); !k.closed {
			k.conn.Park(k)
		}
	}
	k.settle()
}

// due implements side.
func (k *link) due(time.Time) time.Time {
	if k.gone && k.open == 0 && k.dead == nil {
		k.shut()
	}
	return time.Time{}
}

func (k *link) grew() {
	if k.greeted && !k.asSaid {
		k.asSaid = true
		if !k.limited { // it said nothing about it: there is no limit
			k.peerStreams = maxStreamID
		}
	}
	if k.greeted {
		k.pool.allowed = k.peerStreams
	}
	k.most = int(min(uint32(k.cfg.MaxStreams), k.peerStreams))
	k.pool.roomMade()
}

// beginHead implements side.
func (k *link) beginHead(id uint32) (*hpack.Head, *connError) {
	k.coming, k.tailing = nil, false
	k.scratch.Reset()
	st := k.streams.find(id)
	switch {
	case st == nil && !k.known(id):
		return nil, protocol(ProtocolError, "HEADERS of a stream that was not begun")
	case st == nil:
		return &k.scratch, nil
	case st.inEnded:
		k.fail(st, StreamClosed, errClosedHead)
		return &k.scratch, nil
	}
	k.coming, k.tailing = st.up, st.up.headDone
	if k.tailing {
		return &st.up.tail, nil
	}
	st.up.resp.reset()
	return &st.up.resp.head, nil
}

// endHead implements side.
func (k *link) endHead(id uint32, end bool) *connError {
	up := k.coming
	if k.coming = nil; up == nil || !up.listed || up.id != id {
		return nil
	}
	if k.tailing {
		up.endTrailers(&up.tail, end)
		return nil
	}
	r, st := &up.resp, &up.stream
	if err := r.read(); err != nil {
		k.malformed(st, err)
		return nil
	}
	if r.Status < 200 {
		if up.interims++; end || up.interims > maxInterim {
			k.fail(st, ProtocolError, errInterim)
			return nil
		}
		up.interim = true
		st.x.interim(r)
		return nil
	}
	if st.length = r.length; r.bodyless(st.x.req.method) {
		st.length = 0
	} else if end && r.length > 0 {
		k.malformed(st, errLengthWrong)
		return nil
	}
	r.EndStream = end
	st.inEnded = end
	up.headDone = true
	st.wake()
	return nil
}

var errInterim = errors.New("too many interim responses, or one that ends the stream")

// broken implements side.
func (k *link) broken(st *stream) {
	if st.err == nil {
		st.err = k.dead
	}
	st.wake()
}

// goneAway implements side. Streams after the last that the upstream looked at may be
// sent elsewhere whatever they are, RFC 9113 section 6.8.
func (k *link) goneAway(last uint32, code ErrCode) {
	k.gone = true
	k.streams.each(func(s *stream) {
		if s.id > last {
			s.safe = true
			s.over(&GoAwayError{code})
		}
	})
	k.pool.drop(k)
}

func (k *link) ponged([8]byte) { k.asked = false }

// ended implements side.
func (k *link) ended() { k.pool.drop(k) }

// keepAlive asks an upstream that is silent for too long whether it is there.
func (k *link) keepAlive() {
	if k.cfg.KeepAlive <= 0 || k.pinging || k.closed {
		return
	}
	k.pinging = true
	k.l.AfterFunc(k.cfg.KeepAlive, k.look)
}

func (k *link) look() {
	k.pinging = false
	if k.closed || k.open == 0 || k.l.Closing() {
		k.asked = false
		return
	}
	silent := k.l.Age() - k.heard
	switch {
	case k.asked && silent >= k.cfg.KeepAliveTimeout:
		k.lost(errSlow)
		return
	case silent >= k.cfg.KeepAlive && !k.asked:
		k.asked = true
		k.out = appendPing(k.room(), 0, drainPing[:])
		k.touch()
		k.settle()
	}
	wait := k.cfg.KeepAlive - silent
	if k.asked {
		wait = k.cfg.KeepAliveTimeout
	}
	k.pinging = true
	k.l.AfterFunc(max(wait, time.Millisecond), k.look)
}

// shut ends a link that has no use any more.
func (k *link) shut() {
	k.gone = true
	if k.dead == nil {
		k.dead = ErrStale
		k.out = appendGoAway(k.room(), 0, NoError, "")
		if !k.tryFlush() && len(k.out) > 0 && k.bare == nil {
			k.touch()
		}
	}
	k.lost(io.EOF)
}
