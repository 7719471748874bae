package identity

import (
	"bytes"
	"crypto/tls"
	"io"
	"iter"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// duet runs both sides of connections on one thread, the server as a coroutine
// of the client, so that what each costs can be told apart: loopback sockets
// and a scheduler would cost more than what is to be measured.
type duet struct {
	server, client *tls.Config
	next           func() (struct{}, bool)
	stop           func()
	up, down       bytes.Buffer
	err            error         // of the server
	s, c           *tls.Conn     // the last connection
	spent          time.Duration // CPU of the server
	watch          func(run func())
}

func newDuet(server, client *tls.Config) *duet {
	d := &duet{server: server, client: client}
	d.watch = func(run func()) { run() }
	d.next, d.stop = iter.Pull(func(yield func(struct{}) bool) {
		for {
			s := tls.Server(&end{in: &d.up, out: &d.down, wait: func() bool { return yield(struct{}{}) }}, d.server)
			if d.err = exchange(s); d.err != nil {
				return
			}
			d.s = s
		}
	})
	return d
}

// once makes one connection, with a byte each way, so that the ticket arrives.
func (d *duet) once() error {
	d.up.Reset()
	d.down.Reset()
	c := tls.Client(&end{in: &d.down, out: &d.up, wait: func() (ok bool) {
		d.watch(func() { _, ok = d.next() })
		return
	}}, d.client)
	if err := exchange(c); err != nil {
		return err
	}
	d.c = c
	return d.err
}

// timed adds up the CPU that the server takes.
func (d *duet) timed(run func()) {
	from := threadCPU()
	run()
	d.spent += threadCPU() - from
}

func threadCPU() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// end is one side of a connection; wait lets the other side go on.
type end struct {
	net.Conn // nil: what is not here is not called
	in, out  *bytes.Buffer
	wait     func() bool
}

func (e *end) Read(b []byte) (int, error) {
	for e.in.Len() == 0 {
		if !e.wait() {
			return 0, io.EOF
		}
	}
	return e.in.Read(b)
}

func (e *end) Write(b []byte) (int, error) { return e.out.Write(b) }
func (e *end) Close() error                { return nil }

// between is a duet of two workloads.
func between(b *testing.B, resume bool) *duet {
	runtime.LockOSThread()
	b.Cleanup(runtime.UnlockOSThread)
	ca := newAuthority(b)
	client := workload(b, ca, web).ClientTLSAt(store, "10.0.0.1:80")
	if !resume {
		client = client.Clone()
		client.ClientSessionCache = nil
	}
	d := newDuet(workload(b, ca, store).ServerTLS(), client)
	b.Cleanup(d.stop)
	for range 100 {
		if err := d.once(); err != nil {
			b.Fatal(err)
		}
	}
	if got := d.s.ConnectionState().DidResume; got != resume {
		b.Fatal("resumed:", got)
	}
	return d
}

func benchmarkHandshake(b *testing.B, resume bool) {
	d := between(b, resume)
	d.watch = d.timed
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := d.once(); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(d.spent.Nanoseconds())/float64(n), "server-ns/op")
}

// Both sides of a connection: its handshake and one byte each way. server-ns/op
// is what the side that accepts takes of it.
func BenchmarkHandshakeFull(b *testing.B)    { benchmarkHandshake(b, false) }
func BenchmarkHandshakeResumed(b *testing.B) { benchmarkHandshake(b, true) }

// What an idle connection keeps, without its socket: bytes per connection.
func BenchmarkRetained(b *testing.B) {
	for _, side := range []string{"server", "client"} {
		for _, how := range []string{"full", "resumed"} {
			b.Run(side+"/"+how, func(b *testing.B) {
				d := between(b, how == "resumed")
				kept := make([]*tls.Conn, 0, b.N)
				before := heap()
				for range b.N {
					if err := d.once(); err != nil {
						b.Fatal(err)
					}
					if side == "server" {
						kept = append(kept, d.s)
					} else {
						kept = append(kept, d.c)
					}
					d.s, d.c = nil, nil
				}
				b.ReportMetric(float64(heap()-before)/float64(b.N), "retained-B/op")
				runtime.KeepAlive(kept)
			})
		}
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // cleanups of weak certificates
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
