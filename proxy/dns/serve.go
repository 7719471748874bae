package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// After an error of a socket that is not its end, the loop waits a moment.
const pause = 20 * time.Millisecond

// respond is the answer to one message; nil is none. It may take as long as
// the upstreams.
func (s *Server) respond(ctx context.Context, raw []byte, udp bool) []byte {
	q, answer, ok := s.open(raw, udp)
	if !ok {
		return answer
	}
	if q.question.Class == dnsmessage.ClassINET {
		if below, ok := underscored(q.question.Name.String()); ok {
			return s.respondBelow(ctx, &q, below, udp)
		}
		if v4, v6, ok := s.lookup(ctx, q.question.Name.String()); ok {
			s.count.mesh.Add(1)
			return q.meshAnswer(v4, v6, s.cfg.TTL)
		}
	}
	return s.forward(ctx, &q, udp)
}

// respondBelow answers for a name below that of what may be a service of the mesh. An
// upstream may know it. If none can tell, there is no such name as far as we know: a
// client that hears of a failure asks again, for seconds, before it connects.
func (s *Server) respondBelow(ctx context.Context, q *query, below string, udp bool) []byte {
	answer := s.forward(ctx, q, udp)
	if len(answer) < 4 {
		return answer
	}
	switch dnsmessage.RCode(answer[3] & 0xf) {
	case dnsmessage.RCodeServerFailure, dnsmessage.RCodeRefused:
		if _, _, ok := s.lookup(ctx, below); ok {
			s.count.mesh.Add(1)
			return q.reply(dnsmessage.RCodeNameError, true, nil)
		}
	}
	return answer
}

// lookup finds the service that a name is of, or that stands for a host outside.
func (s *Server) lookup(ctx context.Context, query string) (v4, v6 netip.Addr, ok bool) {
	if namespace, name, isMesh := s.cfg.meshName(query); isMesh {
		if v4, v6, ok = s.cfg.Lookup(ctx, namespace, name); ok {
			return v4, v6, true
		}
	}
	host, ok := hostName(query)
	if !ok || s.cfg.LookupHost == nil {
		return v4, v6, false
	}
	return s.cfg.LookupHost(ctx, host)
}

// open parses a message; ok means that it is to be answered by content.
func (s *Server) open(raw []byte, udp bool) (q query, answer []byte, ok bool) {
	q, err := parseQuery(raw, udp)
	switch {
	case err == nil && q.ednsVersion == 0:
		return q, nil, true
	case err == nil:
		s.count.refused.Add(1)
		return q, q.failure(badVersion), false
	case errors.Is(err, errOpcode):
		s.count.refused.Add(1)
		return q, q.failure(dnsmessage.RCodeNotImplemented), false
	case errors.Is(err, errMalformed):
		s.count.malformed.Add(1)
		return q, q.failure(dnsmessage.RCodeFormatError), false
	}
	s.count.malformed.Add(1)
	return q, nil, false
}

// overloaded is the answer at MaxInFlight.
func (s *Server) overloaded(raw []byte, udp bool) []byte {
	q, answer, ok := s.open(raw, udp)
	if !ok {
		return answer
	}
	s.count.overload.Add(1)
	return q.failure(dnsmessage.RCodeServerFailure)
}

// begin takes a place among the queries worked on, if there is one.
func (s *Server) begin() bool {
	s.count.queries.Add(1)
	select {
	case s.inFlight <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) end() { <-s.inFlight }

// serveUDP answers datagrams until the socket is closed.
func (s *Server) serveUDP(ctx context.Context, u *udpSocket, queries *sync.WaitGroup) error {
	buf := make([]byte, maxMessage)
	for ctx.Err() == nil {
		n, from, err := u.read(buf)
		if errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
			return fmt.Errorf("dns: read on udp %v: %w", u.addr, err)
		}
		if err != nil {
			sleep(ctx, pause)
			continue
		}
		if !s.begin() {
			u.write(s.overloaded(buf[:n], true), from)
			continue
		}
		raw := slices.Clone(buf[:n])
		queries.Go(func() {
			answer := s.respond(ctx, raw, true)
			s.end() // before the client can know, and ask again
			u.write(answer, from)
		})
	}
	return nil
}

// serveTCP accepts connections until the listener is closed.
func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener, clients *sync.WaitGroup) error {
	for ctx.Err() == nil {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
			return fmt.Errorf("dns: accept on tcp %v: %w", l.Addr(), err)
		}
		if err != nil {
			sleep(ctx, pause)
			continue
		}
		// Beyond MaxConns this one waits here and the next in the backlog.
		select {
		case s.conns <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return nil
		}
		clients.Go(func() {
			defer func() { <-s.conns }()
			s.serveConn(ctx, conn)
		})
	}
	return nil
}

// serveConn answers one client's queries in turn until it ends, is idle or
// takes no answers.
func (s *Server) serveConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = conn.Close()
	})
	defer func() {
		if !stop() {
			<-closed
		}
	}()
	for {
		if conn.SetDeadline(s.cfg.Now().Add(s.cfg.IdleTimeout)) != nil {
			return
		}
		raw, err := readTCP(conn)
		if err != nil {
			return
		}
		answer := s.answerTCP(ctx, raw)
		if answer == nil {
			return // not DNS
		}
		if conn.SetDeadline(s.cfg.Now().Add(s.cfg.IdleTimeout)) != nil || writeTCP(conn, answer) != nil {
			return
		}
	}
}

func (s *Server) answerTCP(ctx context.Context, raw []byte) []byte {
	if !s.begin() {
		return s.overloaded(raw, false)
	}
	defer s.end()
	return s.respond(ctx, raw, false)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
