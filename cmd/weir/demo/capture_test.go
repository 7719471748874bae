package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

func TestTheCaptureSeesWhatCrossesTheBridgeInPlaintext(t *testing.T) {
	lab := netlab.New(t)
	a, b := lab.MustHost(t, "a"), lab.MustHost(t, "b")
	ln, err := b.ListenTCP(":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := openCapture(lab.Bridge(), "a mark that is sent", "a mark that is not")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6()} {
		conn, err := a.DialContext(t.Context(), "tcp", netip.AddrPortFrom(to, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		// In two segments, so that neither holds all of it.
		for _, part := range []string{"before it: a mark that", " is sent, and after"} {
			if _, err := io.WriteString(conn, part); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(server, make([]byte, len(part))); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
		server.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for c.seen().hits["a mark that is sent"] < 2 {
		if ctx.Err() != nil {
			t.Fatal("the mark was not seen")
		}
		time.Sleep(time.Millisecond) // the kernel hands packets up in its own time
	}
	s := c.seen()
	if s.hits["a mark that is sent"] != 2 || s.hits["a mark that is not"] != 0 || s.lost != 0 {
		t.Errorf("hits %v, lost %d", s.hits, s.lost)
	}
	const sent = len("before it: a mark that is sent, and after")
	for _, p := range []pair{{a.Addr4(), b.Addr4()}, {a.Addr6(), b.Addr6()}} {
		if f := s.between[p]; f.bytes != sent || f.packets < 4 { // SYN, ACK, two of data
			t.Errorf("%v: %+v, want %d bytes", p, f, sent)
		}
	}
}

func TestAMarkIsFoundInEveryKindOfPacket(t *testing.T) {
	const mark = "MARK"
	udp := ipv4(17, []byte("....MARK...."))
	for name, tc := range map[string]struct {
		packets [][]byte
		want    int
	}{
		"in one segment":                {[][]byte{ipv4(6, segment(1, "..MARK.."))}, 1},
		"twice in one segment":          {[][]byte{ipv4(6, segment(1, "MARKMARK"))}, 1},
		"cut in two":                    {[][]byte{ipv4(6, segment(1, "..MA")), ipv4(6, segment(1, "RK.."))}, 1},
		"cut in four":                   {[][]byte{ipv4(6, segment(1, "M")), ipv4(6, segment(1, "A")), ipv4(6, segment(1, "R")), ipv4(6, segment(1, "K"))}, 1},
		"with an empty segment within":  {[][]byte{ipv4(6, segment(1, "MA")), ipv4(6, segment(1, "")), ipv4(6, segment(1, "RK"))}, 1},
		"counted once":                  {[][]byte{ipv4(6, segment(1, "MARK")), ipv4(6, segment(1, "...")), ipv4(6, segment(1, "..."))}, 1},
		"halves of two connections":     {[][]byte{ipv4(6, segment(1, "..MA")), ipv4(6, segment(2, "RK.."))}, 0},
		"in UDP":                        {[][]byte{udp}, 1},
		"not there":                     {[][]byte{ipv4(6, segment(1, "MARCH"))}, 0},
		"in padding after the datagram": {[][]byte{append(ipv4(6, segment(1, "x")), "MARK"...)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := &capture{marks: []string{mark, "a longer one"}, tails: map[flow][]byte{}, sight: sight{between: map[pair]flowCount{}, hits: map[string]int{}}}
			for _, p := range tc.packets {
				c.look(p)
			}
			if got := c.sight.hits[mark]; got != tc.want {
				t.Errorf("found %d times, want %d", got, tc.want)
			}
		})
	}
}

func ipv4(protocol byte, payload []byte) []byte {
	h := make([]byte, 20, 20+len(payload))
	h[0], h[9] = 0x45, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	copy(h[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return append(h, payload...)
}

func segment(port uint16, payload string) []byte {
	h := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(h, port)
	h[12] = 5 << 4
	return append(h, payload...)
}

func FuzzPacket(f *testing.F) {
	f.Add(ipv4(6, segment(1, "payload")))
	f.Add(ipv4(17, []byte("udp")))
	f.Add(append([]byte{0x60, 5: 21, 6: 6, 39: 1}, segment(2, "x")...))
	f.Fuzz(func(t *testing.T, packet []byte) {
		fl, payload, ok := tcp(packet)
		if ok && (!bytes.Contains(packet, payload) || !fl.from.IsValid() || !fl.to.IsValid() || len(payload) > len(packet)-40) {
			t.Errorf("%x gave %+v with %x", packet, fl, payload)
		}
	})
}

func TestThePlainAppAnswersAndEchoes(t *testing.T) {
	lab := netlab.New(t)
	a, b := lab.MustHost(t, "a"), lab.MustHost(t, "b")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for port, app := range map[string]App{":80": {Instance: "x", Version: "v1", FailFile: "/proc/self"}, ":81": {Echo: true}} {
		ln, err := b.ListenTCP(port)
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- app.serve(ctx, ln) }()
	}
	for _, tc := range []struct {
		port      int
		send, get string
	}{
		{80, "GET /health HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"},
		{80, "GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 500 Internal"},
		{81, "anything", "anything"},
	} {
		c, err := a.DialContext(ctx, "tcp", b.Join(tc.port))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(tc.get))
		_, _ = io.WriteString(c, tc.send)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != tc.get {
			t.Errorf("port %d gave %q, %v, want %q", tc.port, got, err, tc.get)
		}
		c.Close()
	}
	stop()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
