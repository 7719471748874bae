package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestOtherNamesAreForwardedUnchanged(t *testing.T) {
	var mu sync.Mutex
	var seen []byte
	var by string
	up := upstream(t, func(q []byte, network string) [][]byte {
		mu.Lock()
		seen, by = q, network
		mu.Unlock()
		return [][]byte{echo(t, q, 2, nil)}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	for _, network := range []string{"udp", "tcp"} {
		query := record{"WwW.eXample.CoM.", dnsmessage.TypeA, 1232}.pack(t, 0x1234)
		m := parse(t, exchange(t, s, network, query))
		if m.ID != 0x1234 || len(addresses(m)) != 2 || m.Questions[0].Name.String() != "WwW.eXample.CoM." {
			t.Errorf("by %s: %+v", network, m)
		}
		if string(seen[2:]) != string(query[2:]) || by != network {
			t.Errorf("by %s: the upstream saw %q by %s", network, seen, by)
		}
	}
	if f := s.Figures(); f.Queries != 2 || f.Forwarded != 2 || f.Retries != 0 {
		t.Errorf("%+v", f)
	}
}

func TestUnknownSingleLabelsAreForwardedToo(t *testing.T) {
	up := upstream(t, func(q []byte, _ string) [][]byte {
		return [][]byte{echo(t, q, 0, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError })}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	for _, name := range []string{"printer.", "nothing.shop.svc.cluster.local.", "."} {
		if m := parse(t, exchange(t, s, "udp", ask(name, dnsmessage.TypeA).pack(t, 1))); m.RCode != dnsmessage.RCodeNameError {
			t.Errorf("%s: %v", name, m.RCode)
		}
	}
}

// A buffer of 512 bytes on the way would make every larger answer fail.
func TestLargeAnswers(t *testing.T) {
	up := upstream(t, func(q []byte, network string) [][]byte { return [][]byte{echo(t, q, 200, nil)} }) // 3.2 KiB, whatever was asked
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	for _, tc := range []struct {
		network string
		edns    int
		whole   bool
	}{{"udp", 0, false}, {"udp", 100, false}, {"udp", 1232, false}, {"udp", 8192, true}, {"tcp", 0, true}} {
		raw := exchange(t, s, tc.network, record{"big.example.com.", dnsmessage.TypeA, tc.edns}.pack(t, 9))
		m := parse(t, raw)
		if m.Truncated == tc.whole || (len(m.Answers) == 200) != tc.whole {
			t.Errorf("%+v: TC %v, %d answers", tc, m.Truncated, len(m.Answers))
		}
		if limit := max(512, tc.edns); tc.network == "udp" && len(raw) > limit {
			t.Errorf("%+v: %d bytes", tc, len(raw))
		}
	}
	if n := s.Figures().Truncated; n != 3 {
		t.Errorf("%d answers were counted as truncated", n)
	}
}

func TestAnswersOf64KiBPassByTCP(t *testing.T) {
	up := upstream(t, func(q []byte, _ string) [][]byte {
		answer := echo(t, q, 1, nil)
		return [][]byte{append(answer, make([]byte, maxMessage-len(answer))...)}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	if raw := exchange(t, s, "tcp", ask("huge.example.com.", dnsmessage.TypeA).pack(t, 9)); len(raw) != maxMessage {
		t.Errorf("%d bytes", len(raw))
	}
}

func TestTheNextUpstreamIsAsked(t *testing.T) {
	good := upstream(t, func(q []byte, _ string) [][]byte { return [][]byte{echo(t, q, 1, nil)} })
	servfail := upstream(t, func(q []byte, _ string) [][]byte {
		return [][]byte{echo(t, q, 0, func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeServerFailure })}
	})
	for name, bad := range map[string]netip.AddrPort{
		"nobody there": deadUpstream(t), "silent": silentUpstream(t), "fails": servfail,
	} {
		for _, network := range []string{"udp", "tcp"} {
			s := serve(t, Config{Upstreams: []netip.AddrPort{bad, good}, Timeout: 400 * time.Millisecond})
			for range 3 {
				if m := parse(t, exchange(t, s, network, ask("example.com.", dnsmessage.TypeA).pack(t, 1))); len(addresses(m)) != 1 {
					t.Errorf("%s by %s: %+v", name, network, m.Header)
				}
			}
			// The first query found out; the others go to the good one at once.
			if f := s.Figures(); f.Retries != 1 || f.Forwarded != 3 {
				t.Errorf("%s by %s: %+v", name, network, f)
			}
		}
	}
}

func TestNoUpstreamAnswers(t *testing.T) {
	s := serve(t, Config{Upstreams: []netip.AddrPort{deadUpstream(t), silentUpstream(t)}, Timeout: 20 * time.Millisecond})
	for _, network := range []string{"udp", "tcp"} {
		if m := parse(t, exchange(t, s, network, ask("example.com.", dnsmessage.TypeA).pack(t, 1))); m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("by %s: %v", network, m.RCode)
		}
		if m := parse(t, exchange(t, s, network, ask("reviews.", dnsmessage.TypeA).pack(t, 1))); len(addresses(m)) != 1 {
			t.Errorf("by %s: mesh names need no upstream: %v", network, m.RCode)
		}
	}
	if f := s.Figures(); f.Failed != 2 || f.Mesh != 2 {
		t.Errorf("%+v", f)
	}
}

func TestALostDatagramIsSentAgain(t *testing.T) {
	var mu sync.Mutex
	lost := false
	up := upstream(t, func(q []byte, _ string) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if !lost {
			lost = true
			return nil
		}
		return [][]byte{echo(t, q, 1, nil)}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}, Timeout: 400 * time.Millisecond})
	if m := parse(t, exchange(t, s, "udp", ask("example.com.", dnsmessage.TypeA).pack(t, 1))); len(addresses(m)) != 1 {
		t.Errorf("%+v", m.Header)
	}
}

func TestWithoutUpstreamsOtherNamesAreRefused(t *testing.T) {
	s := serve(t, Config{})
	if m := parse(t, exchange(t, s, "udp", ask("example.com.", dnsmessage.TypeA).pack(t, 1))); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("%v", m.RCode)
	}
	must(t, s.SetUpstreams([]netip.AddrPort{upstream(t, func(q []byte, _ string) [][]byte { return [][]byte{echo(t, q, 1, nil)} })}))
	if m := parse(t, exchange(t, s, "udp", ask("example.com.", dnsmessage.TypeA).pack(t, 1))); len(addresses(m)) != 1 {
		t.Errorf("after SetUpstreams: %v", m.RCode)
	}
}

// Somebody off the path guesses ids and questions.
func TestForgedAnswersAreNotTaken(t *testing.T) {
	up := upstream(t, func(q []byte, network string) [][]byte {
		if network == "tcp" {
			return nil
		}
		otherID := echo(t, q, 5, nil)
		otherID[0] ^= 0xff
		otherName := echo(t, q, 5, func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("evil.example.") })
		otherType := echo(t, q, 5, func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeMX })
		none := echo(t, q, 5, func(m *dnsmessage.Message) { m.Questions = nil })
		return [][]byte{otherID, q, otherName, otherType, none, {1, 2, 3}, echo(t, q, 1, nil)}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	if m := parse(t, exchange(t, s, "udp", ask("example.com.", dnsmessage.TypeA).pack(t, 1))); len(addresses(m)) != 1 {
		t.Errorf("%d answers, %v", len(m.Answers), m.RCode)
	}
}

func TestIdsToUpstreamsAreNotTheClients(t *testing.T) {
	var mu sync.Mutex
	ids := map[uint16]bool{}
	up := upstream(t, func(q []byte, _ string) [][]byte {
		mu.Lock()
		ids[binary.BigEndian.Uint16(q)] = true
		mu.Unlock()
		return [][]byte{echo(t, q, 1, nil)}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	for range 20 {
		exchange(t, s, "udp", ask("example.com.", dnsmessage.TypeA).pack(t, 7))
	}
	if len(ids) < 15 {
		t.Errorf("20 queries had %d ids", len(ids))
	}
}

func TestDialIsUsedForUpstreams(t *testing.T) {
	up := upstream(t, func(q []byte, _ string) [][]byte { return [][]byte{echo(t, q, 1, nil)} })
	var mu sync.Mutex
	var dialled []string
	s := serve(t, Config{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			dialled = append(dialled, network+" "+addr)
			mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, network, up.String())
		}})
	exchange(t, s, "udp", ask("example.com.", dnsmessage.TypeA).pack(t, 1))
	exchange(t, s, "tcp", ask("example.com.", dnsmessage.TypeA).pack(t, 1))
	if want := []string{"udp 192.0.2.1:53", "tcp 192.0.2.1:53"}; !slices.Equal(dialled, want) {
		t.Errorf("dialled %v", dialled)
	}
}
