package listen

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func TestASocketThatIsNoGoodEndsRun(t *testing.T) {
	l := bindTo(t, Config{Addrs: []string{"127.0.0.1:0", "127.0.0.1:0"}})
	unix.Close(l.sockets[0].fd)
	l.sockets[0].fd = 1 << 20 // no descriptor of ours
	r := run(t, l, greet)
	err := recv(t, r.err, "the end of Run")
	l.sockets[0].fd = -1
	if !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), l.Addrs()[0].String()) {
		t.Errorf("Run: %v", err)
	}
}

func TestWithoutDescriptorsConnectionsWait(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	r := run(t, bindTo(t, Config{Addrs: []string{"127.0.0.1:0"}, Log: zap.New(core)}), greet)
	expect(t, dial(t, r.Addrs()[0]), "hello")
	// The client's socket is made before none is left.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }
	defer restore()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(r.Addrs()[0].Port()), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "an accept to fail", func() bool { return r.Figures().AcceptErrors > 1 })
	restore()
	got := make([]byte, 5)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fd, got); err != nil || string(got[:n]) != "hello" {
		t.Errorf("read %q, %v", got[:max(n, 0)], err)
	}
	if n := logs.FilterMessage("cannot accept for now").Len(); n != 1 {
		t.Errorf("one spell was logged %d times", n)
	}
}
