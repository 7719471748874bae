package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

// rawCodec hands messages over as they are.
type rawCodec struct{}

func (rawCodec) Name() string                       { return "proto" } // which is not said in the content-type
func (rawCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

func init() { encoding.RegisterCodec(rawCodec{}) }

// serveGo runs grpc-go's server with answer as the only method.
func serveGo(t *testing.T, answer func([]byte) ([]byte, error)) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "bench.Echo", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Unary",
		Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in []byte
			if err := dec(&in); err != nil {
				return nil, err
			}
			out, err := answer(in)
			return &out, err
		},
	}}}, nil)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestGeneratorCallsAServerOfGo(t *testing.T) {
	to := serveGo(t, func(in []byte) ([]byte, error) { return in, nil })
	d := openDriver(t, &load{mode: "grpc", targets: to, conns: 1, streams: 8})
	d.until(t, func() bool { return d.sample.Units >= 1000 }) // more than a window
	if d.sample.Errors != 0 {
		t.Errorf("the generator saw %+v", d.sample)
	}
}

func TestCallsThatFailAreErrorsNotWork(t *testing.T) {
	for want, answer := range map[string]func([]byte) ([]byte, error){
		"grpc-status 14: away": func([]byte) ([]byte, error) { return nil, status.Error(codes.Unavailable, "away") },
		"with 104 bytes":       func(in []byte) ([]byte, error) { return in[1:], nil },
	} {
		d := openDriver(t, &load{mode: "grpc", targets: serveGo(t, answer), conns: 1, streams: 4})
		d.until(t, func() bool { return d.sample.Errors > 0 })
		if d.sample.Units != 0 || !strings.Contains(d.sample.Error, want) {
			t.Errorf("%d calls and %q, want an error that says %q", d.sample.Units, d.sample.Error, want)
		}
	}
}

// openDriver is a driver that counts, with its first connection begun.
func openDriver(t *testing.T, l *load) *driver {
	t.Helper()
	d, err := newDriver(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	if err := d.open(); err != nil {
		t.Fatal(err)
	}
	d.counting = true
	return d
}

func (d *driver) until(t *testing.T, reached func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !reached(); {
		if err := d.turn(50*time.Millisecond, false); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(limit) {
			t.Fatalf("after 20 s: %+v", d.sample)
		}
	}
}

func TestAClientOfGoIsAnswered(t *testing.T) {
	addr := startTestBackend(t)
	c, err := grpc.NewClient(addr[serveGRPC], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	message := bytes.Repeat([]byte("m"), echoSize)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 40 { // which also take up more than a window
				var got []byte
				if err := c.Invoke(t.Context(), grpcMethod, &message, &got); err != nil || !bytes.Equal(got, message) {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	var got []byte
	if err := c.Invoke(t.Context(), "/bench.Echo/Other", &message, &got); status.Code(err) != codes.Unimplemented {
		t.Errorf("another method: %v", err)
	}
}

func TestAnHTTP2ClientOfGoIsAnswered(t *testing.T) {
	addr := startTestBackend(t)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	for path, want := range map[string]int{"/items/42": 200, "/": 404} {
		resp, err := (&http.Client{Transport: tr}).Get("http://" + addr[serveH2] + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want || want == 200 && len(body) != smallBody {
			t.Errorf("%s: %s, %d bytes", path, resp.Status, len(body))
		}
	}
}

// framed are frames, each made by a Framer.
func framed(make func(*http2.Framer) error) []byte {
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	if err := errors.Join(f.WriteSettings(), make(f)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func block(fields ...hpack.HeaderField) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range fields {
		_ = enc.WriteField(f) // to memory
	}
	return b.Bytes()
}

func TestWhatIsNoWholeAnswerIsAnError(t *testing.T) {
	ok := hpack.HeaderField{Name: ":status", Value: "200"}
	head := func(f *http2.Framer, id uint32, end bool, fields ...hpack.HeaderField) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(fields...), EndHeaders: true, EndStream: end})
	}
	for want, make := range map[string]func(*http2.Framer) error{
		`answered "503"`:      func(f *http2.Framer) error { return head(f, 1, true, hpack.HeaderField{Name: ":status", Value: "503"}) },
		"without grpc-status": func(f *http2.Framer) error { return head(f, 1, true, ok) },
		"where nobody asked":  func(f *http2.Framer) error { return head(f, 99, false, ok) },
		"was reset":           func(f *http2.Framer) error { return f.WriteRSTStream(1, http2.ErrCodeRefusedStream) },
		"was ended":           func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil) },
		"3 requests are allowed": func(f *http2.Framer) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 3})
		},
		"bodies of 100 bytes": func(f *http2.Framer) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		},
		"nobody asked for": func(f *http2.Framer) error {
			return f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: block(ok), EndHeaders: true})
		},
		"more than one frame": func(f *http2.Framer) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(ok)})
		},
		"with 0 bytes, want 105": func(f *http2.Framer) error {
			return head(f, 1, true, ok, hpack.HeaderField{Name: "grpc-status", Value: "0"})
		},
	} {
		c := newCalls(&driver{cfg: &load{mode: "grpc", streams: 8}}, &flow{})
		err := c.begin()
		if err == nil {
			err = c.take(framed(make))
		}
		if err == nil {
			err = c.begin()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error that says %q", err, want)
		}
	}
}

// A connection whose numbers have run out is finished and another takes its place,
// which is no error.
func TestNumbersOfStreamsRunOut(t *testing.T) {
	addr := startTestBackend(t)
	d := openDriver(t, &load{mode: "h2", targets: addr[serveH2], conns: 1, streams: 4})
	var first *flow
	for _, f := range d.flows {
		if f != nil {
			first = f
		}
	}
	first.calls.next = lastStream - 20
	d.until(t, func() bool { return d.sample.Units >= 40 })
	if d.sample.Errors != 0 || len(first.calls.under) != 0 || first.calls.next <= lastStream {
		t.Errorf("%d errors (%s), the first connection ended at %d", d.sample.Errors, d.sample.Error, first.calls.next)
	}
}

// Heads stay what they are when the other end changes what may be in the table, and
// from the second on they are the same bytes.
func TestRepeatedHeadsFollowTheTable(t *testing.T) {
	var out wire
	out.start(&listener{})
	head := repeated{fields: grpcHead}
	in := &listener{}
	var peer wire
	peer.start(in)
	for i, size := range []uint32{4096, 4096, 4096, 0, 0, 0, 4096, 4096, 100, 100, 100} {
		setting := appendFrame(nil, 6, http2.FrameSettings, 0, 0)
		setting = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(setting, uint16(http2.SettingHeaderTableSize)), size)
		if err := out.take(setting); err != nil {
			t.Fatal(err)
		}
		out.out = out.out[:0] // the acknowledgement
		if err := out.appendHead(&head, 1, true); err != nil {
			t.Fatal(err)
		}
		in.fields = nil
		if err := peer.take(out.out); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if len(in.fields) != len(grpcHead) {
			t.Fatalf("%d: %v", i, in.fields)
		}
		for j, f := range in.fields {
			if f.Name != grpcHead[j].Name || f.Value != grpcHead[j].Value {
				t.Errorf("%d: %v, want %v", i, f, grpcHead[j])
			}
		}
	}
}

// listener notes what a wire hands on.
type listener struct {
	fields []hpack.HeaderField
	bytes  int
	ends   int
}

func (l *listener) field(f hpack.HeaderField) { l.fields = append(l.fields, f) }
func (l *listener) head(_ uint32, end bool) error {
	if end {
		l.ends++
	}
	return nil
}

func (l *listener) data(_ uint32, b []byte, end bool) error {
	l.bytes += len(b)
	return l.head(0, end)
}
func (l *listener) reset(uint32, http2.ErrCode) error { return nil }
func (l *listener) goAway(http2.ErrCode) error        { return nil }

// FuzzWire: whatever comes, and in whatever pieces, the same is handed on and answered.
func FuzzWire(f *testing.F) {
	f.Add(framed(func(f *http2.Framer) error {
		return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(h2Answer...), EndHeaders: true, PadLength: 3, Priority: http2.PriorityParam{StreamDep: 7, Weight: 1}}),
			f.WriteDataPadded(1, true, []byte("hello"), []byte{0, 0}), f.WritePing(false, [8]byte{1}), f.WriteWindowUpdate(0, 9))
	}), uint16(11))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		at := min(int(cut), len(b))
		var whole, pieces listener
		var w, p wire
		w.start(&whole)
		p.start(&pieces)
		err := w.take(b)
		got := p.take(b[:at])
		if got == nil {
			got = p.take(b[at:])
		}
		if (err == nil) != (got == nil) || err != nil && err.Error() != got.Error() {
			t.Fatalf("%v, in pieces %v", err, got)
		}
		if len(whole.fields) != len(pieces.fields) || whole.bytes != pieces.bytes || whole.ends != pieces.ends || w.window != p.window {
			t.Fatalf("%+v, in pieces %+v", whole, pieces)
		}
		if !bytes.Equal(w.out, p.out) {
			t.Fatalf("answered %x, in pieces %x", w.out, p.out)
		}
	})
}
