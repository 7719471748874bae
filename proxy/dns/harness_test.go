package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const patience = 20 * time.Second

var (
	reviewsV4 = netip.MustParseAddr("240.240.0.7")
	reviewsV6 = netip.MustParseAddr("fd77:7769::7")
)

// lookup knows three services.
func lookup(_ context.Context, namespace, name string) (v4, v6 netip.Addr, ok bool) {
	switch namespace + "/" + name {
	case "shop/reviews":
		return reviewsV4, reviewsV6, true
	case "other/only4":
		return reviewsV4, netip.Addr{}, true
	case "other/only6":
		return netip.Addr{}, reviewsV6, true
	}
	return
}

// serve runs a server on loopback. The zero fields of cfg are filled in.
func serve(t testing.TB, cfg Config) *Server {
	t.Helper()
	cfg.Namespace = "shop"
	if cfg.Addrs == nil {
		cfg.Addrs = []string{"127.0.0.1:0"}
	}
	if cfg.Lookup == nil {
		cfg.Lookup = lookup
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	return s
}

// upstream is a resolver in this process. answer gets each query and the
// network it came by; it returns what is sent back.
func upstream(t testing.TB, answer func(q []byte, network string) [][]byte) netip.AddrPort {
	t.Helper()
	p, err := bindPair(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxMessage)
		for {
			n, from, err := p.udp.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, msg := range answer(slices.Clone(buf[:n]), "udp") {
				p.udp.conn.WriteToUDPAddrPort(msg, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := p.tcp.Accept()
			if err != nil {
				return
			}
			if q, err := readTCP(c); err == nil {
				for _, msg := range answer(q, "tcp") {
					writeTCP(c, msg)
				}
			}
			c.Close()
		}
	})
	t.Cleanup(func() { p.udp.conn.Close(); p.tcp.Close(); wg.Wait() })
	return p.udp.addr
}

// deadUpstream has nobody behind it: the kernel says so at once.
func deadUpstream(t testing.TB) netip.AddrPort {
	t.Helper()
	p, err := bindPair(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	p.udp.conn.Close()
	p.tcp.Close()
	return p.udp.addr
}

// silentUpstream takes queries and says nothing.
func silentUpstream(t testing.TB) netip.AddrPort {
	return upstream(t, func([]byte, string) [][]byte { return nil })
}

type record struct {
	name string
	kind dnsmessage.Type
	edns int // the client's UDP size, 0 for no EDNS
}

func ask(name string, kind dnsmessage.Type) record { return record{name: name, kind: kind} }

func (r record) pack(t testing.TB, id uint16) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	must(t, b.StartQuestions())
	must(t, b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(r.name), Type: r.kind, Class: dnsmessage.ClassINET}))
	if r.edns > 0 {
		var h dnsmessage.ResourceHeader
		must(t, h.SetEDNS0(r.edns, 0, false))
		must(t, b.StartAdditionals())
		must(t, b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	msg, err := b.Finish()
	must(t, err)
	return msg
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exchange sends one query and returns the answer, raw.
func exchange(t testing.TB, s *Server, network string, msg []byte) []byte {
	t.Helper()
	c, err := net.Dial(network, s.Addrs()[0].String())
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if network == "tcp" {
		must(t, writeTCP(c, msg))
		answer, err := readTCP(c)
		must(t, err)
		return answer
	}
	_, err = c.Write(msg)
	must(t, err)
	buf := make([]byte, maxMessage)
	n, err := c.Read(buf)
	must(t, err)
	return buf[:n]
}

func parse(t testing.TB, msg []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("the answer cannot be read: %v", err)
	}
	return m
}

func addresses(m dnsmessage.Message) (addrs []netip.Addr) {
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			addrs = append(addrs, netip.AddrFrom4(body.A))
		case *dnsmessage.AAAAResource:
			addrs = append(addrs, netip.AddrFrom16(body.AAAA))
		}
	}
	return addrs
}

// echo answers every query with some records, as a resolver would.
func echo(t testing.TB, q []byte, addrs int, change func(*dnsmessage.Message)) []byte {
	var m dnsmessage.Message
	must(t, m.Unpack(q))
	m.Response, m.RecursionAvailable = true, true
	m.Additionals = nil
	for i := range addrs {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i)}},
		})
	}
	if change != nil {
		change(&m)
	}
	out, err := m.Pack()
	must(t, err)
	return out
}
