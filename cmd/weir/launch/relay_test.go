package launch

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

func listenOn(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func dialed(t *testing.T, r *relay) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", r.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

func TestARelayPassesTheEndOfEachWayOnByItself(t *testing.T) {
	app := listenOn(t)
	r := newRelay(listenOn(t), dialTo(app.Addr().String()))
	defer r.close()
	go func() {
		c, err := app.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c) // until the client's end
		_, _ = c.Write(append([]byte("after "), all...))
	}()
	c := dialed(t, r)
	if _, err := c.Write([]byte("all")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "after all" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestARelayToNobodyResets(t *testing.T) {
	r := newRelay(listenOn(t), func(context.Context) (net.Conn, error) { return nil, errors.New("nobody") })
	defer r.close()
	c, err := net.Dial("tcp", r.ln.Addr().String())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) { // it may come before connect(2) is asked how it went
		t.Errorf("%v, want a reset", err)
	}
}

func TestARelayThatIsClosedLeavesNothing(t *testing.T) {
	app := listenOn(t)
	r := newRelay(listenOn(t), dialTo(app.Addr().String()))
	c := dialed(t, r)
	there, err := app.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	r.close() // returns when its connections are gone
	_ = there.SetDeadline(time.Now().Add(30 * time.Second))
	for what, end := range map[string]net.Conn{"client": c, "server": there} {
		if _, err := end.Read(make([]byte, 1)); err == nil || errors.Is(err, syscall.EAGAIN) {
			t.Errorf("the %s's connection is still open: %v", what, err)
		}
	}
	if c, err := net.Dial("tcp", r.ln.Addr().String()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}
