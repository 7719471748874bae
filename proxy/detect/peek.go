package detect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Config bounds one detection.
type Config struct {
	// Deadline is the moment at which Peek gives up waiting. The zero value
	// waits for as long as ctx allows.
	Deadline time.Time
	// Other ends the wait at once when it is closed (or has a value): the
	// upstream has spoken first, so the protocol is none that is detected.
	Other <-chan struct{}
}

// firstRead holds most ClientHellos whole.
const firstRead = 2 << 10

// Peek reads the first bytes of c until they tell the protocol, and returns a
// connection that gives those bytes again. It never reads more than MaxBytes.
//
// One read decides: waiting for more would stall protocols whose client says
// little before the server's turn. Only where the bytes are the beginning of an
// HTTP request line, of the HTTP/2 preface or of a ClientHello does it read on,
// until Deadline.
//
// The read deadline of c is cleared. An error means that ctx ended (its cause)
// or that c failed; the end of the stream is an Outcome. The Conn is never nil
// and no byte is lost, whatever happened. Peek does not close c, and has left c
// alone when it returns.
func Peek(ctx context.Context, c net.Conn, cfg Config) (Result, *Conn, error) {
	if err := c.SetReadDeadline(cfg.Deadline); err != nil {
		return Result{}, &Conn{Conn: c}, fmt.Errorf("detect: set a deadline: %w", err)
	}
	stop := interruptOn(ctx, c, cfg.Other)
	res, b, err := read(c)
	cut := stop()
	conn := &Conn{Conn: c, unread: b}
	if rerr := c.SetReadDeadline(time.Time{}); rerr != nil && err == nil {
		err = rerr
	}
	if err == nil || errors.Is(err, io.EOF) {
		res.Outcome = decidedOr(err, len(b), Ended)
		return res, conn, nil
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return res, conn, fmt.Errorf("detect: read from the client: %w", err)
	}
	switch cut {
	case byContext:
		res.Outcome = decidedOr(err, len(b), Silent)
		return res, conn, fmt.Errorf("detect: %w", context.Cause(ctx))
	case byOther:
		res.Outcome = decidedOr(err, len(b), OtherSpoke)
	default:
		res.Outcome = decidedOr(err, len(b), Silent)
	}
	return res, conn, nil
}

func decidedOr(err error, bytes int, nothing Outcome) Outcome {
	switch {
	case err == nil:
		return Decided
	case bytes > 0:
		return Incomplete
	}
	return nothing
}

// read reads until Classify needs no more. A nil error means that it does not.
func read(c net.Conn) (Result, []byte, error) {
	buf := make([]byte, firstRead)
	var res Result
	for n := 0; ; {
		m, err := c.Read(buf[n:])
		n += m
		more := true
		if m > 0 {
			res, more = Classify(buf[:n])
		}
		if !more {
			err = nil // it comes again at the next read, if it is lasting
		}
		if !more || err != nil {
			return res, buf[:n], err
		}
		if n == len(buf) {
			buf = append(buf, make([]byte, min(3*n, MaxBytes-n))...)
		}
	}
}

type cause uint8

const (
	byDeadline cause = iota
	byContext
	byOther
)

// interruptOn ends a blocked read of c when ctx or other ends. stop says what
// did it, and returns only when nothing will touch c any more.
func interruptOn(ctx context.Context, c net.Conn, other <-chan struct{}) (stop func() cause) {
	if other == nil && ctx.Done() == nil {
		return func() cause { return byDeadline }
	}
	enough, gone := make(chan struct{}), make(chan cause, 1)
	go func() {
		why := byDeadline
		select {
		case <-enough:
			gone <- why
			return
		case <-ctx.Done():
			why = byContext
		case <-other:
			why = byOther
		}
		// A moment in the past fails the read that waits and takes no byte
		// from it, which nothing else that net.Conn offers does.
		_ = c.SetReadDeadline(time.Unix(1, 0))
		gone <- why
	}()
	return func() cause {
		close(enough)
		return <-gone
	}
}
