package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/dns/dnsmessage"
)

// upstreams is a list of resolvers and which of them is asked first.
type upstreams struct {
	addrs  []netip.AddrPort
	prefer atomic.Int32 // the one that answered last
}

func newUpstreams(addrs []netip.AddrPort) *upstreams {
	return &upstreams{addrs: slices.Clone(addrs)}
}

// tries are the indexes to ask, in order. A lone resolver is asked twice,
// because a datagram may be lost.
func (u *upstreams) tries() []int {
	first := int(u.prefer.Load())
	var order []int
	for i := range max(2, len(u.addrs)) {
		order = append(order, (first+i)%len(u.addrs))
	}
	return order
}

// forward asks the upstreams and returns the client's answer.
func (s *Server) forward(ctx context.Context, q *query, udp bool) []byte {
	up := s.upstreams.Load()
	if len(up.addrs) == 0 {
		// Not NXDOMAIN: that would say, and let be cached, that there is no such
		// name. Not SERVFAIL: that would be asked again.
		s.count.refused.Add(1)
		return q.failure(dnsmessage.RCodeRefused)
	}
	select {
	case s.forwards <- struct{}{}:
		defer func() { <-s.forwards }()
	default:
		s.count.overload.Add(1)
		return q.failure(dnsmessage.RCodeServerFailure)
	}
	msg, err := s.ask(ctx, up, q, udp)
	if msg == nil {
		s.count.failed.Add(1)
		if ctx.Err() == nil && !s.failing.Swap(true) { // once for each spell
			s.log.Warn("no upstream resolver answers", zap.Error(err))
		}
		return q.failure(dnsmessage.RCodeServerFailure)
	}
	if s.failing.Swap(false) {
		s.log.Info("an upstream resolver answers again")
	}
	s.count.forwarded.Add(1)
	msg, truncated := q.fit(msg)
	if truncated {
		s.count.truncated.Add(1)
	}
	binary.BigEndian.PutUint16(msg, q.header.ID)
	return msg
}

// ask tries the upstreams in turn. An answer that says that the resolver cannot
// help (SERVFAIL, REFUSED) is only taken when nobody has a better one.
func (s *Server) ask(ctx context.Context, up *upstreams, q *query, udp bool) (answer []byte, err error) {
	for n, i := range up.tries() {
		if n > 0 {
			s.count.retries.Add(1)
		}
		msg, terr := s.exchange(ctx, up.addrs[i], q, udp)
		if terr != nil {
			err = errors.Join(err, fmt.Errorf("upstream %v: %w", up.addrs[i], terr))
			if ctx.Err() != nil {
				return answer, err
			}
			continue
		}
		answer = msg
		if code := dnsmessage.RCode(msg[3] & 0xf); code != dnsmessage.RCodeServerFailure && code != dnsmessage.RCodeRefused {
			up.prefer.Store(int32(i))
			return answer, nil
		}
	}
	return answer, err
}

// exchange sends the query to one upstream, by the way it came. A client that
// asks by UDP and gets a truncated answer comes again by TCP itself.
func (s *Server) exchange(ctx context.Context, to netip.AddrPort, q *query, udp bool) ([]byte, error) {
	if udp {
		return s.exchangeOver(ctx, "udp", to, q)
	}
	msg, err := s.exchangeOver(ctx, "tcp", to, q)
	if err != nil && ctx.Err() == nil {
		// Resolvers without TCP exist. The answer may be a truncated one.
		if msg, uerr := s.exchangeOver(ctx, "udp", to, q); uerr == nil {
			return msg, nil
		}
	}
	return msg, err
}

func (s *Server) exchangeOver(ctx context.Context, network string, to netip.AddrPort, q *query) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	unblocked := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(unblocked)
		_ = conn.SetDeadline(time.Unix(1, 0)) // ends the read that waits
	})
	defer func() {
		if !stop() {
			<-unblocked
		}
	}()
	// The client's id is known to whoever saw its query; ours is not. All else
	// goes on as it came, EDNS and the case of the name included.
	id := uint16(rand.Uint32())
	msg := slices.Clone(q.raw)
	binary.BigEndian.PutUint16(msg, id)
	if network == "tcp" {
		return exchangeTCP(conn, msg, q, id)
	}
	return exchangeUDP(conn, msg, q, id)
}

func exchangeUDP(conn net.Conn, msg []byte, q *query, id uint16) ([]byte, error) {
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := largest.Get().(*[]byte)
	defer largest.Put(buf)
	for {
		n, err := conn.Read(*buf)
		if err != nil {
			return nil, err
		}
		if q.isAnswerTo((*buf)[:n], id) { // else a late answer or a forged one: wait on
			return slices.Clone((*buf)[:n]), nil
		}
	}
}

func exchangeTCP(conn net.Conn, msg []byte, q *query, id uint16) ([]byte, error) {
	if err := writeTCP(conn, msg); err != nil {
		return nil, err
	}
	answer, err := readTCP(conn)
	if err != nil {
		return nil, err
	}
	if !q.isAnswerTo(answer, id) {
		return nil, errors.New("the answer is not to this query")
	}
	return answer, nil
}

// Over TCP each message has its length in front, RFC 1035 section 4.2.2, and
// both go out in one write (RFC 7766 section 8).
func writeTCP(w io.Writer, msg []byte) error {
	out := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(out, uint16(len(msg)))
	_, err := w.Write(append(out, msg...))
	return err
}

func readTCP(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, fmt.Errorf("a message cut short: %w", err)
	}
	return msg, nil
}

var largest = sync.Pool{New: func() any { b := make([]byte, maxMessage); return &b }}
