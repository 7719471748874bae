package main

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The requests of HTTP/2: the one of http-small, and a call of gRPC as grpc-go sends
// it when it has no deadline.
var (
	h2Head = []hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/items/42"},
		{Name: ":authority", Value: "bench.example"}, {Name: "user-agent", Value: "bench/1.0"},
		{Name: "accept", Value: "*/*"}, {Name: "x-item", Value: "0123456789abcdef"},
	}
	grpcHead = []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: grpcMethod},
		{Name: ":authority", Value: "bench.example"}, {Name: "content-type", Value: "application/grpc"},
		{Name: "user-agent", Value: "grpc-go/1.85.0"}, {Name: "te", Value: "trailers"},
	}
	grpcMessage = append([]byte{0, 0, 0, 0, echoSize}, bytes.Repeat([]byte("m"), echoSize)...)
)

const grpcMethod = "/bench.Echo/Unary"

// calls are the requests of one connection of HTTP/2: as many as are wanted are kept
// under way.
type calls struct {
	wire
	d *driver
	f *flow

	request repeated
	message []byte // of each request, nil: none
	want    int    // bytes of each answer's body
	under   []call // way
	next    uint32 // stream to be begun
	leaving bool   // the other end wants no more
	now     time.Time

	status, code, text string // of the head being read: :status, grpc-status, grpc-message
}

// call is one request.
type call struct {
	id    uint32
	began time.Time
	ok    bool // the head said 200
	got   int  // bytes of the body
}

func newCalls(d *driver, f *flow) *calls {
	c := &calls{d: d, f: f, next: 1, want: smallBody}
	c.start(c)
	c.request.fields = h2Head
	if d.cfg.mode == "grpc" {
		c.request.fields, c.message, c.want = grpcHead, grpcMessage, len(grpcMessage)
	}
	c.out = append(c.out, http2.ClientPreface...)
	c.greet()
	return c
}

// came takes what was read, begins what may be begun, and writes all at once.
func (c *calls) came(data []byte, now time.Time) error {
	c.now = now
	if err := c.take(data); err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return err
	}
	if c.leaving && len(c.under) == 0 {
		return c.d.replace(c.f)
	}
	if len(c.out) == 0 {
		return nil
	}
	err := writeAll(c.f.fd, c.out)
	c.out = c.out[:0]
	return err
}

func (c *calls) begin() error {
	if int(c.streams) < c.d.cfg.streams || c.initial < int64(len(c.message)) {
		return fmt.Errorf("%d requests are allowed at a time, and bodies of %d bytes", c.streams, c.initial)
	}
	for !c.leaving && len(c.under) < c.d.cfg.streams && c.window >= int64(len(c.message)) {
		if err := c.appendHead(&c.request, c.next, c.message == nil); err != nil {
			return err
		}
		if c.message != nil {
			c.appendData(c.message, c.next, true)
		}
		c.under = append(c.under, call{id: c.next, began: c.now})
		if c.next += 2; c.next > lastStream { // numbers have run out
			c.leaving = true
		}
	}
	return nil
}

func (c *calls) find(id uint32) (*call, error) {
	for i := range c.under {
		if c.under[i].id == id {
			return &c.under[i], nil
		}
	}
	return nil, fmt.Errorf("an answer on stream %d, where nobody asked", id)
}

// field implements party.
func (c *calls) field(f hpack.HeaderField) {
	switch f.Name {
	case ":status":
		c.status = f.Value
	case "grpc-status":
		c.code = f.Value
	case "grpc-message":
		c.text = f.Value
	}
}

// head implements party.
func (c *calls) head(id uint32, end bool) error {
	status, code, text := c.status, c.code, c.text
	c.status, c.code, c.text = "", "", ""
	u, err := c.find(id)
	switch {
	case err != nil:
		return err
	case !u.ok && status != "200", u.ok && status != "":
		return fmt.Errorf("answered %q", status)
	case code != "" && code != "0":
		return fmt.Errorf("the call ended with grpc-status %s: %s", code, text)
	case end && c.message != nil && code == "":
		return errNoStatus
	}
	u.ok = true
	if end {
		return c.ended(u)
	}
	return nil
}

var errNoStatus = errors.New("the call ended without grpc-status")

// data implements party.
func (c *calls) data(id uint32, b []byte, end bool) error {
	u, err := c.find(id)
	switch {
	case err != nil:
		return err
	case end && c.message != nil:
		return errNoStatus
	}
	u.got += len(b)
	if end {
		return c.ended(u)
	}
	return nil
}

// ended counts an answer that is whole.
func (c *calls) ended(u *call) error {
	if !u.ok || u.got != c.want {
		return fmt.Errorf("an answer with %d bytes, want %d", u.got, c.want)
	}
	if c.d.counting {
		c.d.sample.Units++
		c.d.times.add(c.now.Sub(u.began))
	}
	c.d.answered(c.f)
	*u = c.under[len(c.under)-1]
	c.under = c.under[:len(c.under)-1]
	return nil
}

// reset implements party.
func (c *calls) reset(id uint32, code http2.ErrCode) error {
	return fmt.Errorf("stream %d was reset: %v", id, code)
}

// goAway implements party. What is under way may still be answered.
func (c *calls) goAway(code http2.ErrCode) error {
	if code != http2.ErrCodeNo {
		return fmt.Errorf("the connection was ended: %v", code)
	}
	c.leaving = true
	return nil
}
