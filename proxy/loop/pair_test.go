package loop

import (
	"io"
	"net"
	"testing"
)

func TestAPairCarriesBytesBothWays(t *testing.T) {
	l := start(t)
	var near *Conn
	var far net.Conn
	do(t, l, func() {
		var err error
		if near, far, err = l.Pair(); err != nil {
			t.Fatal(err)
		}
	})
	defer far.Close()
	if _, err := far.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	do(t, l, func() {
		b := make([]byte, 8)
		if n, err := near.Read(b); err != nil || string(b[:n]) != "ping" {
			t.Error(n, err)
		}
		if _, err := near.Write([]byte("pong")); err != nil {
			t.Error(err)
		}
		if near.ShortCut() {
			t.Error("taken for a connection of the short cut")
		}
		near.Close()
	})
	if b, err := io.ReadAll(far); err != nil || string(b) != "pong" {
		t.Errorf("%q %v", b, err)
	}
}
