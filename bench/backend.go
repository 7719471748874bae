package main

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// service is what a port of the backend does with a connection.
type service int

const (
	serveSmall service = iota // HTTP/1.1, a body of 128 bytes
	serveLarge                // HTTP/1.1, a body of 48 KiB
	serveEcho                 // what comes goes back
	serveBulk                 // bytes without end, from the first byte that comes
	serveH2                   // HTTP/2 with prior knowledge, a body of 128 bytes
	serveGRPC                 // the same, calls of gRPC
)

const (
	smallBody = 128
	largeBody = 48 << 10
)

// served is one connection of the backend.
type served struct {
	does    service
	pending []byte   // still to be written; part of a shared buffer, or own
	partial []byte   // the head of a request that is not all here
	closing bool     // the client asked for the end after this answer
	replies *replies // of HTTP/2, nil of all else
}

// backend is the application behind all proxies: the same program for each, one
// thread, no allocation per request.
type backend struct {
	poll     *poller
	listener map[int]service // by descriptor
	conns    map[int]*served
	buf      []byte
	answers  [2][]byte // by serveSmall and serveLarge
	stream   []byte
}

// newBackend listens on base (small), base+1 (echo), base+2 (bulk) and base+3
// (large), base+4 (HTTP/2) and base+5 (gRPC), or with base 0 on any six ports.
func newBackend(base int) (*backend, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	b := &backend{poll: p, listener: map[int]service{}, conns: map[int]*served{}, buf: make([]byte, 64<<10), stream: make([]byte, 256<<10)}
	b.answers[serveSmall], b.answers[serveLarge] = answer(smallBody), answer(largeBody)
	for i, does := range []service{serveSmall, serveEcho, serveBulk, serveLarge, serveH2, serveGRPC} {
		port := base + i
		if base == 0 {
			port = 0
		}
		fd, err := listenOn(port)
		if err == nil {
			b.listener[fd] = does
			err = p.add(fd, unix.EPOLLIN)
		}
		if err != nil {
			b.close()
			return nil, err
		}
	}
	return b, nil
}

func answer(body int) []byte {
	head := "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(body) + "\r\n\r\n"
	return append([]byte(head), bytes.Repeat([]byte("x"), body)...)
}

func (b *backend) close() {
	for fd := range b.listener {
		_ = unix.Close(fd)
	}
	for fd := range b.conns {
		_ = unix.Close(fd)
	}
	_ = b.poll.close()
}

// run serves until ctx ends, which it looks at ten times a second.
func (b *backend) run(ctx context.Context) error {
	defer b.close()
	for ctx.Err() == nil {
		events, err := b.poll.wait(100 * time.Millisecond)
		if err != nil {
			return err
		}
		for _, ev := range events {
			fd := int(ev.Fd)
			if does, ok := b.listener[fd]; ok {
				b.accept(fd, does)
				continue
			}
			if c := b.conns[fd]; c != nil && !b.serve(fd, c, ev.Events) {
				delete(b.conns, fd)
				_ = unix.Close(fd)
			}
		}
	}
	return nil
}

// accept takes all that wait. The first read is tried at once: the request is
// mostly there already.
func (b *backend) accept(listener int, does service) {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // none left, or no descriptors: the generator counts what fails
		}
		if b.poll.add(fd, unix.EPOLLIN) != nil {
			_ = unix.Close(fd)
			continue
		}
		c := &served{does: does}
		if does == serveH2 || does == serveGRPC {
			c.replies = newReplies(does)
		}
		b.conns[fd] = c
	}
}

// serve moves a connection on; false ends it.
func (b *backend) serve(fd int, c *served, events uint32) bool {
	if events&unix.EPOLLOUT != 0 {
		return b.flush(fd, c)
	}
	n, errno := read(fd, b.buf)
	if errno == unix.EAGAIN {
		return true
	}
	if errno != 0 || n == 0 {
		return false
	}
	switch c.does {
	case serveEcho:
		return b.send(fd, c, b.buf[:n], true)
	case serveBulk:
		c.pending = b.stream
		return b.poll.change(fd, unix.EPOLLOUT) == nil
	case serveH2, serveGRPC:
		return b.streams(fd, c, b.buf[:n])
	}
	return b.requests(fd, c, b.buf[:n])
}

var (
	headEnd    = []byte("\r\n\r\n")
	wantsClose = []byte("onnection: close")
)

// requests answers each whole head in data. Requests have no body here.
func (b *backend) requests(fd int, c *served, data []byte) bool {
	if len(c.partial) > 0 {
		c.partial = append(c.partial, data...)
		data = c.partial
	}
	for !c.closing {
		i := bytes.Index(data, headEnd)
		if i < 0 {
			break
		}
		c.closing = bytes.Contains(data[:i], wantsClose)
		data = data[i+len(headEnd):]
		if !b.send(fd, c, b.answers[c.does], false) {
			return false
		}
	}
	c.partial = append(c.partial[:0], data...)
	return len(c.partial) < len(b.buf) && !(c.closing && len(c.pending) == 0)
}

// streams answers what there is in data, in one write.
func (b *backend) streams(fd int, c *served, data []byte) bool {
	r := c.replies
	if r.came(data) != nil {
		return false
	}
	if len(r.out) == 0 {
		return true
	}
	ok := b.send(fd, c, r.out, true)
	r.out = r.out[:0]
	return ok
}

// send writes, and keeps what the socket does not take: a copy where data will
// be written over.
func (b *backend) send(fd int, c *served, data []byte, copied bool) bool {
	if len(c.pending) > 0 {
		c.pending = append(slices.Clip(c.pending), data...)
		return true
	}
	n, errno := write(fd, data)
	if errno != 0 && errno != unix.EAGAIN {
		return false
	}
	data = data[max(n, 0):]
	if len(data) == 0 {
		return true
	}
	if copied {
		data = bytes.Clone(data)
	}
	c.pending = data
	return b.poll.change(fd, unix.EPOLLOUT) == nil
}

// writesAtOnce bounds how long one fast reader keeps the others waiting.
const writesAtOnce = 16

// flush writes what was kept, and for a bulk connection more and more.
func (b *backend) flush(fd int, c *served) bool {
	for range writesAtOnce {
		n, errno := write(fd, c.pending)
		if errno == unix.EAGAIN {
			return true
		}
		if errno != 0 {
			return false
		}
		if c.pending = c.pending[n:]; len(c.pending) > 0 {
			continue
		}
		if c.does != serveBulk {
			return !c.closing && b.poll.change(fd, unix.EPOLLIN) == nil
		}
		c.pending = b.stream
	}
	return true
}
