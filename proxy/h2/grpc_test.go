package h2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The echo service: "error:CODE:TEXT" fails so, "big:N" answers with N bytes, all else
// comes back, with the metadata x-echo in a header and in the trailer section.
type echo struct {
	name string
	wait chan struct{} // calls of Wait hold on until it is closed, or they are cancelled
	here chan struct{} // told of each call of Wait or Chat that came
	gone chan struct{} // told of each that was cancelled
}

type (
	stringValue = wrapperspb.StringValue
	stream4     = grpc.ServerStream
)

func (e *echo) answer(ctx context.Context, in string) (*stringValue, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-head", strings.Join(md.Get("x-echo"), ",")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-tail", strings.Join(md.Get("x-echo"), ",")))
	switch kind, rest, _ := strings.Cut(in, ":"); kind {
	case "error":
		var code int
		fmt.Sscan(rest, &code)
		_, text, _ := strings.Cut(rest, ":")
		return nil, status.Error(codes.Code(code), text)
	case "big":
		var n int
		fmt.Sscan(rest, &n)
		return wrapperspb.String(strings.Repeat("b", n)), nil
	case "who":
		return wrapperspb.String(e.name), nil
	case "wait":
		e.here <- struct{}{}
		select {
		case <-e.wait:
		case <-ctx.Done():
			e.gone <- struct{}{}
			return nil, ctx.Err()
		}
	}
	return wrapperspb.String(in), nil
}

func (e *echo) desc() *grpc.ServiceDesc {
	stream := func(f func(s stream4) error) grpc.StreamHandler { return func(_ any, s stream4) error { return f(s) } }
	return &grpc.ServiceDesc{
		ServiceName: "shop.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in stringValue
			if err := dec(&in); err != nil {
				return nil, err
			}
			return e.answer(ctx, in.Value)
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Download", ServerStreams: true, Handler: stream(e.download)},
			{StreamName: "Upload", ClientStreams: true, Handler: stream(e.upload)},
			{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: stream(e.chat)},
		},
	}
}

// download sends as many numbers as it is asked for.
func (e *echo) download(s stream4) error {
	var in stringValue
	if err := s.RecvMsg(&in); err != nil {
		return err
	}
	var n, size int
	fmt.Sscan(in.Value, &n, &size)
	for i := range n {
		if err := s.SendMsg(wrapperspb.String(fmt.Sprint(i, " ", strings.Repeat("d", size)))); err != nil {
			return err
		}
	}
	return nil
}

// upload answers with how many bytes it was sent.
func (e *echo) upload(s stream4) error {
	total := 0
	for {
		var in stringValue
		if err := s.RecvMsg(&in); err == io.EOF {
			return s.SendMsg(wrapperspb.String(fmt.Sprint(total)))
		} else if err != nil {
			return err
		}
		if total += len(in.Value); in.Value == "enough" {
			return status.Error(codes.FailedPrecondition, "that will do")
		}
	}
}

// chat answers each message.
func (e *echo) chat(s stream4) error {
	e.here <- struct{}{}
	for {
		var in stringValue
		if err := s.RecvMsg(&in); err == io.EOF {
			return nil
		} else if err != nil {
			select {
			case e.gone <- struct{}{}:
			default:
			}
			return err
		}
		if err := s.SendMsg(wrapperspb.String("re: " + in.Value)); err != nil {
			return err
		}
	}
}

// grpcServer runs the echo service and returns its address.
func grpcServer(t testing.TB, name string, opts ...grpc.ServerOption) (*echo, string, *grpc.Server) {
	t.Helper()
	ln := listen(t)
	e := &echo{name: name, wait: make(chan struct{}), here: make(chan struct{}, 1000), gone: make(chan struct{}, 1000)}
	s := grpc.NewServer(opts...)
	s.RegisterService(e.desc(), e)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(ln) }()
	t.Cleanup(func() { s.Stop(); <-ended })
	return e, ln.Addr().String(), s
}

func grpcClient(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	c, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func guard(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // a guard, not a measure
	t.Cleanup(cancel)
	return ctx
}

func unary(ctx context.Context, c *grpc.ClientConn, in string, opts ...grpc.CallOption) (string, error) {
	var out stringValue
	err := c.Invoke(ctx, "/shop.Echo/Unary", wrapperspb.String(in), &out, opts...)
	return out.Value, err
}

func openStream(t testing.TB, ctx context.Context, c *grpc.ClientConn, name string) grpc.ClientStream {
	t.Helper()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/shop.Echo/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAUnaryCall(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	trailer := make(chan string, 1)
	p := startProxy(t, up, nil)
	p.handle(func(x *Exchange) {
		p.forward(x, up)
		s, _ := x.Trailer("grpc-status")
		trailer <- strings.Clone(s)
	})
	c := grpcClient(t, p.addr())
	var head, tail metadata.MD
	ctx := metadata.AppendToOutgoingContext(guard(t), "x-echo", "one", "bytes-bin", "\x00\xff")
	out, err := unary(ctx, c, "hello", grpc.Header(&head), grpc.Trailer(&tail))
	if err != nil || out != "hello" || head.Get("x-head")[0] != "one" || tail.Get("x-tail")[0] != "one" {
		t.Errorf("%q %v, %v %v", out, err, head, tail)
	}
	if s := <-trailer; s != "0" {
		t.Errorf("grpc-status %q", s)
	}
}

func TestStatusOfACallThatFails(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	trailer := make(chan string, 1)
	p := startProxy(t, up, nil)
	p.handle(func(x *Exchange) {
		p.forward(x, up)
		s, _ := x.Trailer("grpc-status")
		trailer <- strings.Clone(s)
	})
	_, err := unary(guard(t), grpcClient(t, p.addr()), "error:9:no sö%")
	if s, _ := status.FromError(err); s.Code() != 9 || s.Message() != "no sö%" {
		t.Errorf("%v", err)
	}
	if s := <-trailer; s != "9" {
		t.Errorf("grpc-status %q", s)
	}
}

func TestAnswersOfGRPCMadeHere(t *testing.T) {
	p := startProxy(t, "", func(p *proxy) {
		p.handler = func(x *Exchange) {
			if !x.GRPC() {
				t.Error("not known as gRPC")
			}
			x.SetResponse("X-Request-ID", "17")
			_ = x.ReplyGRPC(14, "no endpoint: 100 %\n")
		}
	})
	var tail metadata.MD
	_, err := unary(guard(t), grpcClient(t, p.addr()), "hello", grpc.Trailer(&tail))
	if s, _ := status.FromError(err); s.Code() != codes.Unavailable || s.Message() != "no endpoint: 100 %\n" {
		t.Errorf("%v", err)
	}
	if got := tail.Get("x-request-id"); len(got) != 1 || got[0] != "17" {
		t.Errorf("%v", tail)
	}
}

func TestServerStreaming(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	p := startProxy(t, up, nil)
	c := grpcClient(t, p.addr())
	for _, n := range []string{"0 0", "1 1", "10 70000", "3000 10"} {
		s := openStream(t, guard(t), c, "Download")
		if err := s.SendMsg(wrapperspb.String(n)); err != nil {
			t.Fatal(err)
		}
		s.CloseSend()
		got := 0
		for {
			var m stringValue
			err := s.RecvMsg(&m)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(m.Value, fmt.Sprint(got, " ")) {
				t.Fatalf("message %d is %.20q", got, m.Value)
			}
			got++
		}
		if want, _, _ := strings.Cut(n, " "); fmt.Sprint(got) != want {
			t.Errorf("%d messages of %s", got, n)
		}
	}
}

func TestClientStreaming(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	p := startProxy(t, up, nil)
	c := grpcClient(t, p.addr())
	s := openStream(t, guard(t), c, "Upload")
	for range 300 {
		if err := s.SendMsg(wrapperspb.String(strings.Repeat("u", 5000))); err != nil {
			t.Fatal(err)
		}
	}
	s.CloseSend()
	var m stringValue
	if err := s.RecvMsg(&m); err != nil || m.Value != "1500000" {
		t.Errorf("%v %v", m.Value, err)
	}
}

// A server may answer before the client has said everything.
func TestAnAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	p := startProxy(t, up, nil)
	s := openStream(t, guard(t), grpcClient(t, p.addr()), "Upload")
	_ = s.SendMsg(wrapperspb.String("enough"))
	var m stringValue
	if err := s.RecvMsg(&m); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
	eventually(t, "the end of the request", func() bool { return p.active() == 0 })
}

func TestAConversation(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	p := startProxy(t, up, nil)
	s := openStream(t, guard(t), grpcClient(t, p.addr()), "Chat")
	for i := range 200 {
		text := fmt.Sprint("message ", i)
		if err := s.SendMsg(wrapperspb.String(text)); err != nil {
			t.Fatal(err)
		}
		var m stringValue
		if err := s.RecvMsg(&m); err != nil || m.Value != "re: "+text {
			t.Fatalf("%v %v", m.Value, err)
		}
	}
	s.CloseSend()
	var m stringValue
	if err := s.RecvMsg(&m); err != io.EOF {
		t.Errorf("%v", err)
	}
}

// Requests of one client connection go to as many endpoints as there are.
func TestCallsOfOneConnectionAreBalanced(t *testing.T) {
	var ups []string
	for i := range 3 {
		_, up, _ := grpcServer(t, fmt.Sprint("server ", i))
		ups = append(ups, up)
	}
	n := 0
	p := startProxy(t, "", nil)
	p.handle(func(x *Exchange) { n++; p.forward(x, ups[n%len(ups)]) })
	c := grpcClient(t, p.addr())
	seen := map[string]int{}
	for range 30 {
		who, err := unary(guard(t), c, "who")
		if err != nil {
			t.Fatal(err)
		}
		seen[who]++
	}
	for i := range 3 {
		if seen[fmt.Sprint("server ", i)] != 10 {
			t.Errorf("%v", seen)
		}
	}
}

func TestACallThatIsCancelledIsCancelledUpstream(t *testing.T) {
	e, up, _ := grpcServer(t, "a")
	p := startProxy(t, up, nil)
	c := grpcClient(t, p.addr())
	ctx, cancel := context.WithCancel(guard(t))
	done := make(chan error, 1)
	go func() { _, err := unary(ctx, c, "wait"); done <- err }()
	<-e.here
	cancel()
	<-e.gone
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	f := p.failed(1)[0]
	if f.Side != SideClient {
		t.Errorf("%v", f)
	}
	if out, err := unary(guard(t), c, "again"); err != nil || out != "again" {
		t.Errorf("%q %v", out, err)
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// The client's connection going away is the end of all its calls.
func TestAConnectionThatIsCutCancelsItsCalls(t *testing.T) {
	e, up, _ := grpcServer(t, "a")
	p := startProxy(t, up, nil)
	var conns []net.Conn
	var mu sync.Mutex
	c := grpcClient(t, p.addr(), grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", a)
		mu.Lock()
		conns = append(conns, nc)
		mu.Unlock()
		return nc, err
	}))
	s := openStream(t, guard(t), c, "Chat")
	for range 5 {
		go func() { _, _ = unary(guard(t), c, "wait") }()
	}
	for range 6 {
		<-e.here
	}
	_ = s.SendMsg(wrapperspb.String("x"))
	mu.Lock()
	conns[0].Close()
	mu.Unlock()
	for range 6 {
		<-e.gone
	}
}

// More calls than an upstream allows on a connection go on another.
func TestMaxStreamsOfTheUpstreamAreRespected(t *testing.T) {
	e, up, _ := grpcServer(t, "a", grpc.MaxConcurrentStreams(10))
	p := startProxy(t, up, nil)
	c := grpcClient(t, p.addr())
	if _, err := unary(guard(t), c, "first"); err != nil { // so that the limit is known
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 35 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := unary(guard(t), c, "wait"); err != nil {
				t.Error(err)
			}
		}()
	}
	eventually(t, "all calls", func() bool { return p.active() == 35 })
	eventually(t, "four connections", func() bool { return p.dialsMade() == 4 })
	close(e.wait)
	wg.Wait()
	if n := p.dialsMade(); n != 4 {
		t.Errorf("%d connections", n)
	}
}

// A server that stops lets its calls finish; those that come later go elsewhere.
func TestGoAwayOfTheUpstreamLosesNothing(t *testing.T) {
	_, other, _ := grpcServer(t, "b")
	e, first, srv := grpcServer(t, "a")
	target := first
	p := startProxy(t, "", nil)
	p.handle(func(x *Exchange) { p.forward(x, target) })
	c := grpcClient(t, p.addr())
	done := make(chan error, 20)
	for range 20 {
		go func() { _, err := unary(guard(t), c, "wait"); done <- err }()
	}
	for range 20 {
		<-e.here
	}
	stopped := make(chan struct{})
	go func() { srv.GracefulStop(); close(stopped) }()
	eventually(t, "the end of the connection for new calls", func() bool {
		n := 0
		on(p.l, func() { n = p.pool(first).Len() })
		return n == 0
	})
	on(p.l, func() { target = other })
	if who, err := unary(guard(t), c, "who"); err != nil || who != "b" {
		t.Errorf("%q %v", who, err)
	}
	close(e.wait)
	for range 20 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	<-stopped
}

func TestLargeMetadata(t *testing.T) {
	_, up, _ := grpcServer(t, "a", grpc.MaxHeaderListSize(1<<20))
	p := startProxy(t, up, nil)
	c := grpcClient(t, p.addr(), grpc.WithMaxHeaderListSize(1<<20))
	var head metadata.MD
	big := strings.Repeat("m", 25<<10)
	out, err := unary(metadata.AppendToOutgoingContext(guard(t), "x-echo", big), c, "hello", grpc.Header(&head))
	if err != nil || out != "hello" || head.Get("x-head")[0] != big {
		t.Errorf("%q %v", out, err)
	}
	_, err = unary(metadata.AppendToOutgoingContext(guard(t), "x-echo", strings.Repeat("m", 70<<10)), c, "hello")
	if status.Code(err) == codes.OK {
		t.Error("more than the limit passed")
	}
	if out, err = unary(guard(t), c, "again"); err != nil || out != "again" {
		t.Errorf("%q %v", out, err)
	}
}

func TestBigMessages(t *testing.T) {
	_, up, _ := grpcServer(t, "a", grpc.MaxRecvMsgSize(64<<20))
	p := startProxy(t, up, nil)
	c := grpcClient(t, p.addr(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	in := string(bytes.Repeat([]byte("x"), 3<<20))
	if out, err := unary(guard(t), c, in); err != nil || out != in {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	if out, err := unary(guard(t), c, "big:7000000"); err != nil || len(out) != 7000000 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}
