package relay

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/proxy/loop"
)

// threadLoop runs a loop on a thread of its own, so that its CPU time is known.
func threadLoop(b *testing.B) *loop.Loop {
	b.Helper()
	l, err := loop.New(loop.Config{})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		l.Run()
	}()
	b.Cleanup(func() { l.Close(); <-ended })
	return l
}

// spent is the CPU time of the loop's thread in seconds.
func spent(b *testing.B, l *loop.Loop) float64 {
	b.Helper()
	got := make(chan float64, 1)
	l.Post(func() {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			b.Error(err)
		}
		got <- float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	})
	return <-got
}

func benchScene(b *testing.B, l *loop.Loop, wrap func(*loop.Conn) loop.Stream) (app, server *net.TCPConn) {
	b.Helper()
	client, app := pair(b, l)
	upstream, server := pair(b, l)
	do(b, l, func() { Start(wrap(client), wrap(upstream), Config{}, func(Result) {}) })
	return app, server
}

func bare(c *loop.Conn) loop.Stream { return c }

// Small messages there and back, one at a time on each of 64 relays.
func BenchmarkPingPong64(b *testing.B) {
	const relays = 64
	l := threadLoop(b)
	var apps, servers [relays]*net.TCPConn
	for i := range relays {
		apps[i], servers[i] = benchScene(b, l, bare)
	}
	msg := make([]byte, 100)
	b.ReportAllocs()
	began := spent(b, l)
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range relays {
		mine := b.N / relays
		if i < b.N%relays {
			mine++
		}
		wg.Go(func() { echoes(b, servers[i], mine) })
		wg.Go(func() {
			msg := append([]byte(nil), msg...)
			for range mine {
				if _, err := apps[i].Write(msg); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(apps[i], msg); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric((spent(b, l)-began)*1e6/float64(b.N), "relay-µs/op")
}

func echoes(b *testing.B, c net.Conn, n int) {
	msg := make([]byte, 100)
	for range n {
		if _, err := io.ReadFull(c, msg); err != nil {
			b.Error(err)
			return
		}
		if _, err := c.Write(msg); err != nil {
			b.Error(err)
			return
		}
	}
}

// One stream as fast as it goes; the splice and, for comparison, the copy that
// a layer gets.
func BenchmarkBulk(b *testing.B) {
	for name, wrap := range map[string]func(*loop.Conn) loop.Stream{
		"splice": bare,
		"copy":   func(c *loop.Conn) loop.Stream { return plain{c} },
	} {
		b.Run(name, func(b *testing.B) {
			l := threadLoop(b)
			app, server := benchScene(b, l, wrap)
			go io.CopyBuffer(io.Discard, struct{ io.Reader }{server}, make([]byte, 256<<10))
			msg := make([]byte, 1<<20)
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			began := spent(b, l)
			for b.Loop() {
				if _, err := app.Write(msg); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((spent(b, l)-began)*1024/float64(b.N), "relay-s/GiB")
		})
	}
}

// plain is a connection that does not look like one.
type plain struct{ *loop.Conn }
