package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMeshNames(t *testing.T) {
	s := serve(t, Config{})
	const a, aaaa, any, srv, https = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeALL, dnsmessage.TypeSRV, dnsmessage.Type(65)
	v4, v6 := []netip.Addr{reviewsV4}, []netip.Addr{reviewsV6}
	for _, tc := range []struct {
		query record
		want  []netip.Addr
	}{
		{ask("reviews.", a), v4},
		{ask("reviews.", aaaa), v6},
		{ask("reviews.shop.", a), v4},
		{ask("reviews.shop.svc.", a), v4},
		{ask("reviews.shop.svc.cluster.local.", a), v4},
		{ask("ReViEwS.Shop.SVC.Cluster.LOCAL.", a), v4},
		{ask("reviews.", any), []netip.Addr{reviewsV4, reviewsV6}},
		{ask("only4.other.", a), v4},
		{ask("only4.other.", aaaa), nil},
		{ask("only6.other.", a), nil},
		{ask("only6.other.", aaaa), v6},
		{ask("reviews.", srv), nil},
		{ask("reviews.", https), nil},
		{record{"reviews.", a, 4096}, v4},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := parse(t, exchange(t, s, network, tc.query.pack(t, 77)))
			if !m.Response || m.ID != 77 || m.RCode != 0 || !m.Authoritative || !m.RecursionDesired || !m.RecursionAvailable {
				t.Errorf("%v by %s: %+v", tc.query, network, m.Header)
			}
			if len(m.Questions) != 1 || m.Questions[0].Name.String() != tc.query.name {
				t.Errorf("%v by %s: the question came back as %v", tc.query, network, m.Questions)
			}
			if got := addresses(m); !slices.Equal(got, tc.want) {
				t.Errorf("%v by %s: %v, want %v", tc.query, network, got, tc.want)
			}
			for _, rr := range m.Answers {
				if rr.Header.TTL != 5 || rr.Header.Name.String() != tc.query.name {
					t.Errorf("%v by %s: %v", tc.query, network, rr.Header)
				}
			}
			if hasOPT := len(m.Additionals) == 1; hasOPT != (tc.query.edns > 0) {
				t.Errorf("%v by %s: additional records are %v", tc.query, network, m.Additionals)
			}
		}
	}
}

// Without an upstream that can tell, a service of the mesh has no names with an
// underscore before its own; of other names nothing is said.
func TestNamesBelowAService(t *testing.T) {
	s := serve(t, Config{})
	for name, want := range map[string]dnsmessage.RCode{
		"_grpc_config.reviews.":                  dnsmessage.RCodeNameError,
		"_http._tcp.reviews.shop.":               dnsmessage.RCodeNameError,
		"_x.reviews.shop.svc.cluster.local.":     dnsmessage.RCodeNameError,
		"_grpc_config.nobody.":                   dnsmessage.RCodeRefused,
		"_grpc_config.reviews.shop.example.com.": dnsmessage.RCodeRefused,
		"_.":                                     dnsmessage.RCodeRefused,
	} {
		if m := parse(t, exchange(t, s, "udp", ask(name, dnsmessage.TypeTXT).pack(t, 1))); m.RCode != want {
			t.Errorf("%s: %v", name, m.RCode)
		}
	}
}

func TestFormsOfNames(t *testing.T) {
	c := Config{Namespace: "Shop", ClusterDomain: "Mesh.Example."}.withDefaults()
	for _, tc := range []struct{ query, want string }{
		{"a.", "shop/a"},
		{"a.b.", "b/a"},
		{"a.b.svc.", "b/a"},
		{"A.B.SVC.MESH.EXAMPLE.", "b/a"},
		{"a.b.svc.cluster.local.", ""},
		{"a.b.c.", ""},
		{"a.b.pod.mesh.example.", ""},
		{"x.a.b.svc.mesh.example.", ""},
		{"b.svc.mesh.example.", ""},
		{"svc.mesh.example.", ""},
		{"mesh.example.", "example/mesh"}, // two labels; whether it is one, Lookup says
		{"a.svc.", "svc/a"},
		{"\xc0\xc1.", "shop/\xc0\xc1"},
		{".", ""},
	} {
		namespace, name, ok := c.meshName(tc.query)
		if got := namespace + "/" + name; ok != (tc.want != "") || ok && got != tc.want {
			t.Errorf("%q: %q, %v; want %q", tc.query, got, ok, tc.want)
		}
	}
}

func TestItsOwnAddressIsNoUpstream(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		s := serve(t, Config{Addrs: []string{addr}})
		own := s.Addrs()[0]
		if own.Addr().IsUnspecified() {
			own = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), own.Port())
			if s.Addrs()[0].Addr().Is6() {
				own = netip.AddrPortFrom(netip.IPv6Loopback(), own.Port())
			}
		}
		if err := s.SetUpstreams([]netip.AddrPort{own}); err == nil || !strings.Contains(err.Error(), own.String()) {
			t.Errorf("listening on %s: upstream %v: %v", addr, own, err)
		}
		if err := s.SetUpstreams([]netip.AddrPort{netip.AddrPortFrom(own.Addr(), own.Port()^1)}); err != nil {
			t.Error(err)
		}
	}
	_, err := New(Config{Addrs: []string{"127.0.0.1:0"}, Lookup: lookup, Upstreams: []netip.AddrPort{{}}})
	if err == nil {
		t.Error("an upstream without address was taken")
	}
}

func TestMessagesThatAreNoGoodQueries(t *testing.T) {
	s := serve(t, Config{})
	good := ask("reviews.", dnsmessage.TypeA).pack(t, 5)
	with := func(change func([]byte) []byte) []byte { return change(slices.Clone(good)) }
	for _, tc := range []struct {
		name string
		msg  []byte
		code int // -1: no answer
	}{
		{"nothing", nil, -1},
		{"too short", good[:11], -1},
		{"an answer", with(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		{"an update", with(func(b []byte) []byte { b[2] |= 5 << 3; return b }), 4},
		{"no question", with(func(b []byte) []byte { b[5] = 0; return b[:12] }), 1},
		{"two questions", with(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), 1},
		{"a question cut short", good[:len(good)-3], 1},
		{"a name that points to itself", with(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), 1},
		{"a record that is not there", with(func(b []byte) []byte { b[11] = 1; return b }), 1},
		{"two OPT records", twoOPT(t), 1},
		{"EDNS version 1", with(func(b []byte) []byte {
			b[11] = 1
			return append(b, 0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0)
		}), 0}, // the low four bits of BADVERS
	} {
		answer := s.respond(t.Context(), tc.msg, true)
		switch {
		case tc.code < 0 && answer != nil:
			t.Errorf("%s: answered %q", tc.name, answer)
		case tc.code >= 0 && (len(answer) < headerSize || int(answer[3]&0xf) != tc.code || answer[2]&0x80 == 0 || string(answer[:2]) != string(good[:2])):
			t.Errorf("%s: answered %q", tc.name, answer)
		}
	}
}

func twoOPT(t *testing.T) []byte {
	b := record{"reviews.", dnsmessage.TypeA, 1232}.pack(t, 5)
	b[11] = 2
	return append(b, b[len(b)-11:]...)
}

func TestAtMaxInFlightQueriesFailAtOnce(t *testing.T) {
	s := serve(t, Config{Upstreams: []netip.AddrPort{silentUpstream(t)}, MaxInFlight: 4, Timeout: patience})
	c, err := net.Dial("udp", s.Addrs()[0].String())
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for i := range 4 {
		c.Write(ask("example.com.", dnsmessage.TypeA).pack(t, uint16(i)))
	}
	// Three of four may wait for upstreams, so the fourth fails at once, and
	// mesh names are answered still.
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	must(t, err)
	if m := parse(t, buf[:n]); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%+v", m.Header)
	}
	for _, network := range []string{"udp", "tcp"} {
		if m := parse(t, exchange(t, s, network, ask("reviews.", dnsmessage.TypeA).pack(t, 9))); len(addresses(m)) != 1 {
			t.Errorf("by %s: %+v", network, m.Header)
		}
	}
	if f := s.Figures(); f.Overload != 1 || f.InFlight < 3 {
		t.Errorf("%+v", f)
	}
}

func TestABlockedLookupIsBoundedToo(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := serve(t, Config{MaxInFlight: 4, Lookup: func(ctx context.Context, _, _ string) (v4, v6 netip.Addr, ok bool) {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return reviewsV4, reviewsV6, true
	}})
	c, err := net.Dial("udp", s.Addrs()[0].String())
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for i := range 4 {
		c.Write(ask("reviews.", dnsmessage.TypeA).pack(t, uint16(i)))
		<-entered
	}
	if m := parse(t, exchange(t, s, "udp", ask("reviews.", dnsmessage.TypeA).pack(t, 9))); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%+v", m.Header)
	}
	close(release)
	for range 4 {
		n, err := c.Read(make([]byte, 512))
		if err != nil || n == 0 {
			t.Fatal(err)
		}
	}
}

func TestRunEndsWhileQueriesWait(t *testing.T) {
	s, err := New(Config{Addrs: []string{"127.0.0.1:0"}, Lookup: lookup, Timeout: time.Hour,
		Upstreams: []netip.AddrPort{silentUpstream(t)}})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for _, network := range []string{"udp", "tcp"} {
		c, err := net.Dial(network, s.Addrs()[0].String())
		must(t, err)
		defer c.Close()
		msg := ask("example.com.", dnsmessage.TypeA).pack(t, 1)
		if network == "tcp" {
			must(t, writeTCP(c, msg))
		} else {
			c.Write(msg)
		}
	}
	for end := time.Now().Add(patience); s.Figures().InFlight < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the queries did not arrive")
		}
	}
	cancel()
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(patience):
		t.Fatal("Run does not end")
	}
}

func TestTCPClients(t *testing.T) {
	s := serve(t, Config{MaxConns: 1, IdleTimeout: 50 * time.Millisecond, Addrs: []string{"127.0.0.1:0", "[::1]:0"}})
	c, err := net.Dial("tcp", s.Addrs()[0].String())
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	for i := range 3 { // several queries on one connection
		must(t, writeTCP(c, ask("reviews.", dnsmessage.TypeA).pack(t, uint16(i))))
		answer, err := readTCP(c)
		must(t, err)
		if m := parse(t, answer); int(m.ID) != i || len(addresses(m)) != 1 {
			t.Errorf("%+v", m)
		}
	}
	// A second client is served once the first was idle for too long.
	if m := parse(t, exchange(t, s, "tcp", ask("reviews.", dnsmessage.TypeA).pack(t, 1))); len(addresses(m)) != 1 {
		t.Errorf("%+v", m)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the idle connection: %v", err)
	}
}

// The client's socket is connected, so the kernel drops an answer that comes
// from another address than was asked.
func TestTheAnswerComesFromTheAddressThatWasAsked(t *testing.T) {
	for listen, asked := range map[string]string{"0.0.0.0:0": "127.0.0.3", "[::]:0": "::1"} {
		s := serve(t, Config{Addrs: []string{listen}})
		c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(asked), s.Addrs()[0].Port()).String())
		must(t, err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write(ask("reviews.", dnsmessage.TypeA).pack(t, 1))
		n, err := c.Read(make([]byte, 512))
		if err != nil || n == 0 {
			t.Errorf("%s: %v", listen, err)
		}
	}
}

func TestAddressesThatCannotBeBound(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	for _, addr := range []string{taken.Addr().String(), "127.0.0.1", ":53", "localhost:53", "192.0.2.1:5353"} {
		s, err := New(Config{Addrs: []string{"127.0.0.1:0", addr}, Lookup: lookup})
		if err == nil {
			s.Close()
			t.Errorf("%s was bound", addr)
			continue
		}
		if !strings.Contains(err.Error(), addr) {
			t.Errorf("%q does not name %s", err, addr)
		}
		if addr == taken.Addr().String() && (!errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "in use by another program")) {
			t.Error(err)
		}
	}
	for _, cfg := range []Config{{Lookup: lookup}, {Addrs: []string{"127.0.0.1:0"}}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}
