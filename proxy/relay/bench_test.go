package relay

import (
	"io"
	"net"
	"testing"
)

// Small messages there and back, one at a time.
func BenchmarkPingPong(b *testing.B) {
	s := start(b, Config{})
	go io.CopyBuffer(struct{ io.Writer }{s.server}, struct{ io.Reader }{s.server}, make([]byte, 1<<10))
	msg := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.app.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s.app, msg); err != nil {
			b.Fatal(err)
		}
	}
}

// One stream as fast as it goes; the splice and, for comparison, the copy that
// a wrapped connection gets.
func BenchmarkBulk(b *testing.B) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"splice": func(c net.Conn) net.Conn { return c },
		"copy":   func(c net.Conn) net.Conn { return halfCloser{c} },
	} {
		b.Run(name, func(b *testing.B) {
			app, client := tcpPair(b)
			upstream, server := tcpPair(b)
			s := startWith(b, app, server, wrap(client), wrap(upstream), Config{})
			go io.CopyBuffer(io.Discard, struct{ io.Reader }{s.server}, make([]byte, 1<<20))
			msg := make([]byte, 1<<20)
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.app.Write(msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
