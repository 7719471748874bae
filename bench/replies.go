package main

import (
	"bytes"
	"slices"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The answers of HTTP/2, those of gRPC as grpc-go sends them.
var (
	h2Answer = []hpack.HeaderField{
		{Name: ":status", Value: "200"}, {Name: "server", Value: "bench"},
		{Name: "content-type", Value: "text/plain"}, {Name: "content-length", Value: strconv.Itoa(smallBody)},
	}
	h2Body       = bytes.Repeat([]byte("x"), smallBody)
	grpcAnswer   = []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}
	grpcTrailers = []hpack.HeaderField{{Name: "grpc-status", Value: "0"}, {Name: "grpc-message", Value: ""}}
	notFound     = []hpack.HeaderField{{Name: ":status", Value: "404"}}
)

// replies are the backend's half of a connection of HTTP/2. A request is answered when
// all of it is there, and if it is one that the generator sends.
type replies struct {
	wire
	body           []byte
	path           string
	need           int // bytes of each request's body
	answer, refuse repeated
	trailers       repeated // none without fields

	asked   string // :path of the head being read
	coming  []coming
	waiting []uint32 // streams whose answer waits for the connection's window
}

// coming is a request whose end has not come.
type coming struct {
	id    uint32
	known bool // its path
	got   int
}

func newReplies(does service) *replies {
	r := &replies{body: h2Body, path: "/items/42"}
	r.start(r)
	r.expect = http2.ClientPreface
	r.answer.fields, r.refuse.fields = h2Answer, notFound
	if does == serveGRPC {
		r.body, r.path, r.need = grpcMessage, grpcMethod, len(grpcMessage)
		r.answer.fields, r.trailers.fields = grpcAnswer, grpcTrailers
	}
	r.greet()
	return r
}

// came takes what was read; what is to be written for it is in r.out.
func (r *replies) came(data []byte) error {
	if err := r.take(data); err != nil {
		return err
	}
	n := 0
	for n < len(r.waiting) && r.window >= int64(len(r.body)) {
		if err := r.reply(r.waiting[n]); err != nil {
			return err
		}
		n++
	}
	r.waiting = slices.Delete(r.waiting, 0, n)
	return nil
}

// field implements party.
func (r *replies) field(f hpack.HeaderField) {
	if f.Name == ":path" {
		r.asked = f.Value
	}
}

// head implements party.
func (r *replies) head(id uint32, end bool) error {
	c := coming{id: id, known: r.asked == r.path}
	r.asked = ""
	if end {
		return r.whole(c)
	}
	r.coming = append(r.coming, c)
	return nil
}

// data implements party.
func (r *replies) data(id uint32, b []byte, end bool) error {
	for i := len(r.coming) - 1; i >= 0; i-- { // most often that which came last
		c := &r.coming[i]
		if c.id != id {
			continue
		}
		if c.got += len(b); !end {
			return nil
		}
		it := *c
		r.coming = slices.Delete(r.coming, i, i+1)
		return r.whole(it)
	}
	return nil // it was reset
}

// whole answers a request.
func (r *replies) whole(c coming) error {
	if !c.known || c.got != r.need {
		return r.appendHead(&r.refuse, c.id, true)
	}
	r.waiting = append(r.waiting, c.id)
	return nil
}

func (r *replies) reply(id uint32) error {
	if err := r.appendHead(&r.answer, id, false); err != nil {
		return err
	}
	r.appendData(r.body, id, r.trailers.fields == nil)
	if r.trailers.fields == nil {
		return nil
	}
	return r.appendHead(&r.trailers, id, true)
}

// reset implements party. Of what was answered already nobody needs to know.
func (r *replies) reset(id uint32, _ http2.ErrCode) error {
	r.coming = slices.DeleteFunc(r.coming, func(c coming) bool { return c.id == id })
	r.waiting = slices.DeleteFunc(r.waiting, func(w uint32) bool { return w == id })
	return nil
}

// goAway implements party: the proxy closes when it wants to.
func (r *replies) goAway(http2.ErrCode) error { return nil }
