package h2

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestAnAbortReachesBothEnds: a stream of gRPC under way is ended from beside its
// handler, in a word that its client understands, through another proxy too; the
// server is told, and other streams of the connection go on.
func TestAnAbortReachesBothEnds(t *testing.T) {
	e, up, _ := grpcServer(t, "a")
	receiver := startProxy(t, up, nil)
	caller := startProxy(t, receiver.addr(), nil)
	under := make(chan *Exchange, 2)
	receiver.handle(func(x *Exchange) {
		under <- x
		receiver.forward(x, up)
	})
	c := grpcClient(t, caller.addr())
	say := func(s interface {
		SendMsg(any) error
		RecvMsg(any) error
	}) error {
		if err := s.SendMsg(wrapperspb.String("hello")); err != nil {
			return err
		}
		return s.RecvMsg(&stringValue{})
	}
	ended := openStream(t, guard(t), c, "Chat")
	if err := say(ended); err != nil {
		t.Fatal(err)
	}
	x := <-under
	other := openStream(t, guard(t), c, "Chat")
	if err := say(other); err != nil {
		t.Fatal(err)
	}
	receiver.l.Post(func() { x.Abort(InadequateSecurity) })
	if err := ended.RecvMsg(&stringValue{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the client hears %v", err)
	}
	select {
	case <-e.gone:
	case <-time.After(20 * time.Second): // a guard, not a measure
		t.Error("the server is not told")
	}
	if err := say(other); err != nil {
		t.Errorf("another stream has ended: %v", err)
	}
}
