package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// hold opens connections, makes one exchange on each so that the proxy has done
// all that it does for a connection, says so on stdout, and keeps them, idle,
// until stdin ends.
func hold(ctx context.Context, l *load, stdin io.Reader, stdout io.Writer) error {
	h := &holder{cfg: l, targets: l.addresses(), conns: make([]net.Conn, l.conns)}
	defer h.close()
	if err := h.open(ctx); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(stdout, "held %d\n", l.conns); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, stdin)
	return err
}

type holder struct {
	cfg     *load
	targets []string
	conns   []net.Conn // by number, each written by one goroutine
}

func (h *holder) open(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range h.cfg.concurrent {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(h.conns) {
					return
				}
				if err := h.one(ctx, i); err != nil {
					stop(fmt.Errorf("connection %d of %d: %w", i+1, len(h.conns), err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (h *holder) one(ctx context.Context, i int) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", h.targets[i%len(h.targets)])
	if err != nil {
		return err
	}
	h.conns[i] = c
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	request := make([]byte, echoSize)
	if h.cfg.exchange == "http" {
		request = []byte(httpRequest)
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for have := 0; ; {
		n, err := c.Read(buf[have:])
		if err != nil {
			return err
		}
		have += n
		length := echoSize
		if h.cfg.exchange == "http" {
			if length, err = answerLength(buf[:have]); err != nil {
				return err
			}
		}
		if have == length {
			return c.SetDeadline(time.Time{})
		}
	}
}

func (h *holder) close() {
	for _, c := range h.conns {
		if c != nil {
			_ = c.Close()
		}
	}
}
