package dns

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// canned is a connection to an upstream that answers every query alike, under
// the query's id.
type canned struct {
	net.Conn
	answer []byte
	tcp    bool
	ready  bytes.Buffer
}

func (c *canned) Write(b []byte) (int, error) {
	query := b
	if c.tcp {
		query = b[2:]
	}
	answer := bytes.Clone(c.answer)
	if len(answer) >= 2 {
		copy(answer, query[:2])
	}
	if c.tcp {
		return len(b), writeTCP(&c.ready, answer)
	}
	c.ready.Write(answer)
	return len(b), nil
}

func (c *canned) Read(b []byte) (int, error) {
	if c.ready.Len() == 0 {
		return 0, io.EOF
	}
	return c.ready.Read(b)
}

func (c *canned) Close() error                { return nil }
func (c *canned) SetDeadline(time.Time) error { return nil }

// Whatever comes from clients and upstreams: an answer has the query's id and
// question, is an answer, and is never larger than the client takes.
func FuzzRespond(f *testing.F) {
	mesh, other := ask("reviews.", dnsmessage.TypeA).pack(f, 1), record{"Example.com.", dnsmessage.TypeA, 700}.pack(f, 0xbeef)
	f.Add(mesh, []byte{}, true)
	f.Add(record{"reviews.", dnsmessage.TypeALL, 4096}.pack(f, 2), []byte{}, false)
	f.Add(other, echo(f, other, 3, nil), true)
	f.Add(other, echo(f, other, 100, nil), true)
	f.Add(other, echo(f, other, 100, nil), false)
	f.Add(other, echo(f, other, 0, func(m *dnsmessage.Message) { m.RCode, m.Questions = dnsmessage.RCodeFormatError, nil }), true)
	f.Add(other, other, true)

	var answer []byte
	s, err := New(Config{
		Addrs: []string{"127.0.0.1:0"}, Namespace: "shop", Lookup: lookup,
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")},
		Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
			return &canned{answer: answer, tcp: network == "tcp"}, nil
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, query, fromUpstream []byte, udp bool) {
		query, answer = query[:min(len(query), maxMessage)], fromUpstream[:min(len(fromUpstream), maxMessage)]
		kept := bytes.Clone(query)
		got := s.respond(context.Background(), query, udp)
		if !bytes.Equal(query, kept) {
			t.Fatal("the query was changed")
		}
		if got == nil {
			return
		}
		if len(got) < headerSize || !bytes.Equal(got[:2], query[:2]) || got[2]&0x80 == 0 {
			t.Fatalf("%q was answered %q", query, got)
		}
		if limit := limitOf(query, udp); len(got) > limit {
			t.Fatalf("%d bytes for a client that takes %d", len(got), limit)
		}
		if asked, ok := firstQuestion(query); ok {
			// An answer without its question is allowed where the question was no
			// good, or the upstream thought so.
			if echoed, ok := firstQuestion(got); ok && echoed != asked || !ok && got[3]&0xf == 0 {
				t.Fatalf("asked %+v, the answer is to %+v (%v)", asked, echoed, ok)
			}
		}
	})
}

// limitOf reads the client's size in its own way: by unpacking everything.
func limitOf(query []byte, udp bool) int {
	if !udp {
		return maxMessage
	}
	limit := minUDP
	var m dnsmessage.Message
	if m.Unpack(query) == nil {
		for _, rr := range m.Additionals {
			if rr.Header.Type == dnsmessage.TypeOPT {
				limit = max(limit, int(rr.Header.Class))
			}
		}
	} else {
		limit = maxMessage // not for this reading to say
	}
	return limit
}

func firstQuestion(msg []byte) (string, bool) {
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err != nil {
		return "", false
	}
	q, err := p.Question()
	return strings.ToLower(q.GoString()), err == nil
}
