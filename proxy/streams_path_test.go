package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weir-mesh/weir/policy"
)

// callPath is the whole way of gRPC calls, policy and all, between a client and a
// server on real sockets that allocate nothing themselves: what they send is made
// beforehand, but for the numbers of streams.
type callPath struct {
	t      testing.TB
	client net.Conn
	in     *bufio.Reader
	next   uint32
	buf    []byte
	server chan error
}

// framesOf are frames as one end sends them at once, and where in them the numbers
// of their streams are.
type framesOf struct {
	bytes []byte
	ids   []int
}

func framesFor(write func(*http2.Framer) error) framesOf {
	var b bytes.Buffer
	if err := write(http2.NewFramer(&b, nil)); err != nil {
		panic(err)
	}
	f := framesOf{bytes: b.Bytes()}
	for at := 0; at < len(f.bytes); {
		f.ids = append(f.ids, at+5)
		at += 9 + int(f.bytes[at])<<16 + int(f.bytes[at+1])<<8 + int(f.bytes[at+2])
	}
	return f
}

// on is the frames on another stream.
func (f framesOf) on(id uint32) []byte {
	for _, at := range f.ids {
		binary.BigEndian.PutUint32(f.bytes[at:], id)
	}
	return f.bytes
}

// literals is a head that stays the same whatever was sent before it: nothing of it
// is to enter a table.
func literals(namesAndValues ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(namesAndValues); i += 2 {
		// What is sensitive is sent as a literal, RFC 7541 section 7.1.3; what the
		// static table has is smaller.
		_ = e.WriteField(hpack.HeaderField{Name: namesAndValues[i], Value: namesAndValues[i+1], Sensitive: namesAndValues[i][0] != ':'})
	}
	return b.Bytes()
}

var (
	callRequest = framesFor(func(f *http2.Framer) error {
		head := literals(":method", "POST", ":scheme", "http", ":path", "/", "host", "users", "content-type", "application/grpc", "te", "trailers", "user-agent", "grpc-go/1")
		return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true}), f.WriteData(1, true, make([]byte, 105)))
	})
	callAnswer = framesFor(func(f *http2.Framer) error {
		return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: literals(":status", "200", "content-type", "application/grpc"), EndHeaders: true}),
			f.WriteData(1, false, make([]byte, 105)),
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: literals("grpc-status", "0"), EndHeaders: true, EndStream: true}))
	})
	// callGreeting opens the window of the connection for good.
	callGreeting = framesFor(func(f *http2.Framer) error {
		return errors.Join(f.WriteSettings(), f.WriteWindowUpdate(0, 1<<31-1-65535))
	})
)

// nextEnd reads frames up to one that ends a stream and gives its number.
func nextEnd(r *bufio.Reader) (uint32, error) {
	for {
		h, err := r.Peek(9)
		if err != nil {
			return 0, err
		}
		length := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		kind, flags, id := http2.FrameType(h[3]), http2.Flags(h[4]), binary.BigEndian.Uint32(h[5:])
		if _, err := r.Discard(9 + length); err != nil {
			return 0, err
		}
		switch {
		case kind == http2.FrameRSTStream, kind == http2.FrameGoAway:
			return 0, errors.New("a call was reset")
		case (kind == http2.FrameData || kind == http2.FrameHeaders) && flags.Has(http2.FlagDataEndStream):
			return id, nil
		}
	}
}

// answerCalls is the server.
func answerCalls(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	if _, err := io.CopyN(io.Discard, r, int64(len(http2.ClientPreface))); err != nil {
		return err
	}
	if _, err := c.Write(callGreeting.bytes); err != nil {
		return err
	}
	out := make([]byte, 0, 64<<10)
	for {
		id, err := nextEnd(r)
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) { // the proxy has ended
			return nil
		}
		if err != nil {
			return err
		}
		if out = append(out, callAnswer.on(id)...); r.Buffered() > 0 && len(out) < 32<<10 {
			continue
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
		out = out[:0]
	}
}

// newCallPath is the way out or, past an inbound connection, in.
func newCallPath(t testing.TB, inwards bool) *callPath {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &callPath{t: t, next: 1, buf: make([]byte, 0, 64<<10), server: make(chan error, 1)}
	go func() { o.server <- answerCalls(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-o.server; err != nil {
			t.Error(err)
		}
	})
	p := sidecar(t)
	svc := usersWith(endpointOf("a", l.Addr().String(), speaking("grpc")))
	svc.Traffic.RateLimit = policy.RateLimit{Limit: 16_000_000, Window: time.Minute}
	svc.Traffic.Breaker = policy.Breaker{Enabled: true, Threshold: 5, Timeout: time.Minute}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	in := policy.Inbound{Service: p.cfg.Service, MTLS: policy.Strict, Rules: []policy.InboundRule{{SecurityRule: policy.SecurityRule{
		ID: "users", SourceNamespace: "default", SourceService: "users", DestinationNamespace: "default", DestinationService: "front", AllowedMethods: policy.DefaultMethods(),
	}}}}
	if err := p.setInbound(in); err != nil {
		t.Fatal(err)
	}
	loop := turning(t, p)
	lc, client := redirectedPair(t, loop)
	loop.Post(func() {
		loop.Go(func() {
			if !inwards {
				p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users])
				return
			}
			i := &inbound{p: p, lc: lc, dst: netip.MustParseAddrPort(l.Addr().String()), caller: policy.Caller{Name: users, Verified: true}}
			i.serveStreams(&lc.Conn, nil)
		})
	})
	o.client, o.in = client, bufio.NewReaderSize(client, 64<<10)
	if _, err := client.Write(append([]byte(http2.ClientPreface), callGreeting.bytes...)); err != nil {
		t.Fatal(err)
	}
	return o
}

// callsAtOnce is how many are under way.
const callsAtOnce = 8

// calls makes rounds of them.
func (o *callPath) calls(rounds int) {
	for range rounds {
		o.buf = o.buf[:0]
		for range callsAtOnce {
			o.buf = append(o.buf, callRequest.on(o.next)...)
			o.next += 2
		}
		if _, err := o.client.Write(o.buf); err != nil {
			o.t.Fatal(err)
		}
		for range callsAtOnce {
			if _, err := nextEnd(o.in); err != nil {
				o.t.Fatal(err)
			}
		}
	}
}

func TestAnHTTP2RequestAllocatesNothing(t *testing.T) {
	for name, inwards := range map[string]bool{"on its way out": false, "on its way in": true} {
		t.Run(name, func(t *testing.T) {
			o := newCallPath(t, inwards)
			o.calls(20)
			const rounds = 100
			per := testing.AllocsPerRun(5, func() { o.calls(rounds) }) / rounds / callsAtOnce
			limit := 0.05 // what the loops' timers and the runtime do now and then
			if raceEnabled {
				limit = 20 // sync.Pool drops at random under the race detector
			}
			if per > limit {
				t.Errorf("%.3f allocations per request", per)
			}
		})
	}
}

func BenchmarkCall(b *testing.B) {
	for name, inwards := range map[string]bool{"out": false, "in": true} {
		b.Run(name, func(b *testing.B) {
			o := newCallPath(b, inwards)
			o.calls(20)
			b.ReportAllocs()
			b.ResetTimer()
			o.calls((b.N + callsAtOnce - 1) / callsAtOnce)
			b.StopTimer()
		})
	}
}
