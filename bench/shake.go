package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// shaker makes TLS connections: handshake, one exchange of 100 bytes, end.
type shaker struct {
	cfg     *load
	tls     *tls.Config
	targets []string

	mu       sync.Mutex // guards what follows
	counting bool
	times    histogram
	sample   sample
}

// shake is the generator for handshakes. Its client is crypto/tls for every
// server; it costs more than some of the servers, which is why only the servers'
// CPU time per connection is taken, and no rate.
func shake(ctx context.Context, l *load) (*sample, error) {
	cert, err := tls.LoadX509KeyPair(l.cert, l.key)
	if err != nil {
		return nil, fmt.Errorf("bench load: -cert, -key: %w", err)
	}
	m, err := l.meter()
	if err != nil {
		return nil, err
	}
	s := &shaker{cfg: l, targets: l.addresses(), tls: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ServerName: "bench.example",
		InsecureSkipVerify: true, // the client is not what is measured
	}}
	if l.alpn != "" {
		s.tls.NextProtos = []string{l.alpn}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	for i := range l.conns {
		wg.Go(func() { s.worker(ctx, s.targets[i%len(s.targets)]) })
	}
	defer wg.Wait()
	defer stop()
	return s.measure(ctx, m)
}

func (s *shaker) measure(ctx context.Context, m *meter) (*sample, error) {
	if err := sleep(ctx, s.cfg.warm); err != nil {
		return nil, err
	}
	if err := m.begin(time.Now()); err != nil {
		return nil, err
	}
	s.count(true)
	if err := sleep(ctx, s.cfg.length); err != nil {
		return nil, err
	}
	s.count(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.sample
	out.P50, out.P99, out.P999 = s.times.quantile(.5), s.times.quantile(.99), s.times.quantile(.999)
	if out.Units == 0 {
		return nil, fmt.Errorf("no handshake succeeded, %d failed: %s", out.Errors, out.Error)
	}
	return &out, m.end(time.Now(), &out)
}

func (s *shaker) count(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counting = on
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// worker makes one connection after the other. It has sessions of its own: a
// ticket that two use at once is refused by some servers.
func (s *shaker) worker(ctx context.Context, to string) {
	cfg := s.tls.Clone()
	if s.cfg.resume {
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	}
	for first := true; ctx.Err() == nil; first = false {
		began := time.Now()
		state, err := s.once(ctx, to, cfg)
		if ctx.Err() != nil {
			return
		}
		if err == nil && s.cfg.resume && !first && !state.DidResume {
			err = errors.New("the session was not resumed")
		}
		s.note(time.Since(began), state, err)
		if err != nil && sleep(ctx, 10*time.Millisecond) != nil {
			return
		}
	}
}

func (s *shaker) note(took time.Duration, state tls.ConnectionState, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.sample.Errors++
		if s.sample.Error == "" {
			s.sample.Error = err.Error()
		}
		return
	}
	if !s.counting {
		return
	}
	s.sample.Units++
	s.times.add(took)
	s.sample.Curve = state.CurveID
}

// once is one connection. The answer is read before the state is looked at:
// tickets come with it.
func (s *shaker) once(ctx context.Context, to string, cfg *tls.Config) (state tls.ConnectionState, err error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return state, err
	}
	defer func() { _ = raw.Close() }()
	if err := raw.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return state, err
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return state, err
	}
	var message [echoSize]byte
	if _, err := c.Write(message[:]); err != nil {
		return state, err
	}
	if _, err := io.ReadFull(c, message[:]); err != nil {
		return state, fmt.Errorf("read the echo: %w", err)
	}
	state = c.ConnectionState()
	return state, c.Close()
}
