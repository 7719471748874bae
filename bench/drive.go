package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// driver is the generator for http, h2, grpc, echo and bulk: one thread, one epoll
// set, no allocation per exchange of its own.
type driver struct {
	cfg     *load
	poll    *poller
	targets []unix.Sockaddr
	request []byte
	buf     []byte
	flows   []*flow // by descriptor
	opened  int     // connections begun, for the turn of targets
	ready   int     // connections that have had an answer

	// at a fixed rate
	interval time.Duration
	due      time.Time
	idle     []*flow     // oldest first, so that all connections take their turn
	waiting  []time.Time // exchanges that were due when no connection was idle

	counting bool
	times    histogram
	sample   sample
}

// flow is one connection.
type flow struct {
	fd      int
	to      unix.Sockaddr
	up      bool      // it stands
	ready   bool      // it has had an answer
	busy    bool      // an exchange is under way
	need    int       // bytes of the answer still to come; -1 before its head is read
	partial []byte    // a head that is not all here
	began   time.Time // when the exchange was begun, or due
	calls   *calls    // of HTTP/2, nil of all else
}

// httpRequest is 110 bytes or so, with the fields that every client sends.
const httpRequest = "GET /items/42 HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nX-Item: 0123456789abcdef\r\n\r\n"

const echoSize = 100

func drive(ctx context.Context, l *load) (*sample, error) {
	runtime.LockOSThread() // timer slack is a thread's
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("make timers exact: %w", err)
	}
	d, err := newDriver(l)
	if err != nil {
		return nil, err
	}
	defer d.close()
	m, err := l.meter()
	if err != nil {
		return nil, err
	}
	if err := d.connectAll(ctx); err != nil {
		return nil, err
	}
	d.due = time.Now()
	if err := d.pass(ctx, l.warm); err != nil {
		return nil, err
	}
	if err := m.begin(time.Now()); err != nil {
		return nil, err
	}
	d.counting = true
	if err := d.pass(ctx, l.length); err != nil {
		return nil, err
	}
	d.counting = false
	s := &d.sample
	if err := m.end(time.Now(), s); err != nil {
		return nil, err
	}
	s.Late = int64(len(d.waiting))
	s.P50, s.P99, s.P999 = d.times.quantile(.5), d.times.quantile(.99), d.times.quantile(.999)
	return s, nil
}

func newDriver(l *load) (*driver, error) {
	d := &driver{cfg: l, buf: make([]byte, 64<<10)}
	switch {
	case l.mode == "echo":
		d.request = bytes.Repeat([]byte("e"), echoSize)
	case l.mode == "bulk":
		d.request = []byte("g")
	case l.fresh:
		d.request = []byte(httpRequest[:len(httpRequest)-2] + "Connection: close\r\n\r\n")
	default:
		d.request = []byte(httpRequest)
	}
	if l.rate > 0 {
		d.interval = time.Duration(float64(time.Second) / l.rate)
	}
	for _, text := range l.addresses() {
		to, err := sockaddr(text)
		if err != nil {
			return nil, fmt.Errorf("bench load: -to: %w", err)
		}
		d.targets = append(d.targets, to)
	}
	var err error
	d.poll, err = newPoller()
	return d, err
}

func (d *driver) close() {
	for _, f := range d.flows {
		if f != nil {
			_ = unix.Close(f.fd)
		}
	}
	_ = d.poll.close()
}

// connecting bounds how many connections are under way at a time: the queue of
// no proxy overflows, whatever its length.
const connecting = 128

// connectAll opens all connections and waits until each has had its first answer:
// what a proxy does once for a connection, TLS with the other proxy above all, is
// not to fall into the measurement. Those of a closed loop go on already.
func (d *driver) connectAll(ctx context.Context) error {
	limit := time.Now().Add(20 * time.Second)
	for d.ready < d.cfg.conns {
		for d.opened < d.cfg.conns && d.opened-d.ready < connecting {
			if err := d.open(); err != nil {
				return err
			}
		}
		if err := d.turn(50*time.Millisecond, false); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d of %d connections have had an answer after 20 s, %d errors: %s", d.ready, d.cfg.conns, d.sample.Errors, d.sample.Error)
		}
	}
	return nil
}

// pass keeps the load up for a time.
func (d *driver) pass(ctx context.Context, length time.Duration) error {
	end := time.Now().Add(length)
	for {
		left := time.Until(end)
		if left <= 0 {
			return ctx.Err()
		}
		if err := d.turn(min(left, 100*time.Millisecond), d.interval > 0); err != nil {
			return err
		}
	}
}

// turn handles what is ready, waiting at most the limit for it.
func (d *driver) turn(limit time.Duration, paced bool) error {
	if paced {
		d.release(time.Now())
		limit = min(limit, max(0, time.Until(d.due)))
	}
	events, err := d.poll.wait(limit)
	if err != nil {
		return err
	}
	for i := range events {
		f := d.flows[events[i].Fd]
		if f == nil {
			continue
		}
		if err := d.handle(f); err != nil {
			if err := d.failed(f, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// release begins what is due.
func (d *driver) release(now time.Time) {
	for !d.due.After(now) {
		if len(d.idle) == 0 {
			d.waiting = append(d.waiting, d.due)
		} else {
			f := d.idle[0]
			d.idle = d.idle[1:]
			if err := d.begin(f, d.due); err != nil {
				_ = d.failed(f, err) // too many are noticed at the next turn
			}
		}
		d.due = d.due.Add(d.interval)
	}
}

const mostErrors = 1000

// failed counts an error and opens another connection in f's place. Too many
// end the run.
func (d *driver) failed(f *flow, err error) error {
	d.sample.Errors++
	if d.sample.Error == "" {
		d.sample.Error = err.Error()
	}
	if d.sample.Errors > mostErrors {
		return fmt.Errorf("more than %d errors, the first: %s", mostErrors, d.sample.Error)
	}
	return d.replace(f)
}

func (d *driver) replace(f *flow) error {
	d.flows[f.fd] = nil
	_ = unix.Close(f.fd)
	if f.ready {
		d.ready--
	}
	d.opened--
	return d.open()
}

// open begins a connection to the target whose turn it is. Over loopback it
// stands at once, and the first request goes out without waiting for an event.
func (d *driver) open() error {
	to := d.targets[d.opened%len(d.targets)]
	fd, err := dialStart(to)
	if err != nil {
		return err
	}
	for fd >= len(d.flows) {
		d.flows = append(d.flows, nil)
	}
	f := &flow{fd: fd, to: to}
	if d.cfg.streamed() {
		f.calls = newCalls(d, f)
	}
	d.flows[fd] = f
	d.opened++
	if d.cfg.fresh {
		if n, errno := write(fd, d.request); errno == 0 && n == len(d.request) {
			d.answered(f) // of fresh ones none lasts: there is nothing to wait for
			f.up, f.busy, f.need, f.began = true, true, d.expected(), time.Now()
			return d.poll.add(fd, unix.EPOLLIN)
		}
	}
	return d.poll.add(fd, unix.EPOLLOUT)
}

var errClosed = errors.New("the connection was closed")

func (d *driver) handle(f *flow) error {
	if !f.up {
		return d.established(f)
	}
	if d.cfg.mode == "bulk" {
		return d.swallow(f)
	}
	n, errno := read(f.fd, d.buf)
	if errno == unix.EAGAIN {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("read: %w", errno)
	}
	if n == 0 {
		return errClosed
	}
	if f.calls != nil {
		return f.calls.came(d.buf[:n], time.Now())
	}
	done, err := d.consume(f, d.buf[:n])
	if err != nil || !done {
		return err
	}
	return d.finished(f)
}

func (d *driver) established(f *flow) error {
	if code, err := unix.GetsockoptInt(f.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		return fmt.Errorf("connect: %w", errors.Join(err, unix.Errno(code)))
	}
	f.up = true
	if d.cfg.fresh {
		d.answered(f)
	}
	if err := d.poll.change(f.fd, unix.EPOLLIN); err != nil {
		return err
	}
	if f.calls != nil {
		return f.calls.came(nil, time.Now())
	}
	return d.begin(f, time.Now())
}

func (d *driver) answered(f *flow) {
	if !f.ready {
		f.ready = true
		d.ready++
	}
}

// expected is the length of an answer where that is known.
func (d *driver) expected() int {
	if d.cfg.mode == "echo" {
		return echoSize
	}
	return -1
}

// begin sends a request. It is small: a socket that does not take all of it is
// a connection that is broken.
func (d *driver) begin(f *flow, at time.Time) error {
	f.need, f.began, f.busy = d.expected(), at, true
	return writeAll(f.fd, d.request)
}

func writeAll(fd int, b []byte) error {
	n, errno := write(fd, b)
	if errno != 0 {
		return fmt.Errorf("write: %w", errno)
	}
	if n < len(b) {
		return fmt.Errorf("write: %d of %d bytes", n, len(b))
	}
	return nil
}

// finished counts an exchange and begins the next.
func (d *driver) finished(f *flow) error {
	now := time.Now()
	if d.counting {
		d.sample.Units++
		d.times.add(now.Sub(f.began))
	}
	f.busy = false
	d.answered(f)
	switch {
	case d.cfg.fresh:
		return d.replace(f)
	case d.interval == 0:
		return d.begin(f, now)
	case len(d.waiting) > 0:
		due := d.waiting[0]
		d.waiting = d.waiting[1:]
		return d.begin(f, due)
	}
	d.idle = append(d.idle, f)
	return nil
}

// swallow counts what has come, without copying it out of the kernel where it
// came through TCP. What came by weir's short cut must be copied.
func (d *driver) swallow(f *flow) error {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(f.fd), 0, 4<<20, unix.MSG_TRUNC, 0, 0)
	if errno == unix.EFAULT {
		var copied int
		copied, errno = read(f.fd, d.buf)
		n = uintptr(copied)
	}
	switch {
	case errno == unix.EAGAIN:
		return nil
	case errno != 0:
		return fmt.Errorf("read: %w", errno)
	case n == 0:
		return errClosed
	}
	d.answered(f)
	if d.counting {
		d.sample.Units += int64(n)
	}
	return nil
}

// consume takes bytes of an answer; done when it is whole.
func (d *driver) consume(f *flow, data []byte) (done bool, err error) {
	if !f.busy {
		return false, errors.New("an answer that nobody asked for")
	}
	if f.need < 0 {
		if len(f.partial) > 0 {
			f.partial = append(f.partial, data...)
			data = f.partial
		}
		length, err := answerLength(data)
		if err != nil {
			return false, err
		}
		if length < 0 {
			f.partial = append(f.partial[:0], data...)
			return false, nil
		}
		f.need, f.partial = length, f.partial[:0]
	}
	if f.need -= len(data); f.need < 0 {
		return false, fmt.Errorf("%d bytes more than the answer has", -f.need)
	}
	return f.need == 0, nil
}
