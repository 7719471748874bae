package e2e

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weir-mesh/weir/test/meshlab"
)

// dig asks as any program of the namespace would.
func dig(t *testing.T, n *meshlab.Node, args ...string) string {
	t.Helper()
	return strings.TrimSpace(output(t, n, "dig", append([]string{"+time=3", "+tries=1"}, args...)...))
}

func dnsNames(t *testing.T, m *tcpMesh) {
	var v4, v6 string
	services, err := m.API.Services(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range services {
		if s.ServiceName == "data" {
			v4, v6 = s.VirtualIPv4, s.VirtualIPv6
		}
	}
	if v4 == "" || v6 == "" {
		t.Fatalf("no virtual addresses: %+v", services)
	}
	for _, name := range []string{"data", "data.", "DATA", "data.default", "data.default.svc", "data.default.svc.cluster.local", "data.default.svc.cluster.local."} {
		for _, how := range [][]string{{"+notcp"}, {"+tcp"}, {"+notcp", "@192.0.2.1"}} { // whichever server is meant
			args := append([]string{"+short"}, how...)
			if got := dig(t, m.front, append(args, "A", name)...); got != v4 {
				t.Errorf("%v A %s: %q, want %s", how, name, got, v4)
			}
			if got := dig(t, m.front, append(args, "AAAA", name)...); got != v6 {
				t.Errorf("%v AAAA %s: %q, want %s", how, name, got, v6)
			}
		}
	}
	if got := dig(t, m.front, "MX", "data"); !strings.Contains(got, "status: NOERROR") || !strings.Contains(got, "ANSWER: 0") {
		t.Errorf("MX data: %s", got)
	}
	if got := output(t, m.front, "getent", "ahostsv4", "data"); !strings.HasPrefix(got, v4+" ") {
		t.Errorf("the C library says %q", got)
	}
}

// dnsForward has to run while nothing but its own server answers at the bridge.
func dnsForward(t *testing.T, m *tcpMesh) {
	for _, name := range []string{"www.example.org", "nosuch", "nosuch.default.svc.cluster.local"} {
		// Nobody answers there: the failure comes back at once, not after a timeout.
		if got := dig(t, m.front, name); !strings.Contains(got, "status: SERVFAIL") && !strings.Contains(got, "status: NXDOMAIN") {
			t.Errorf("%s: %s", name, got)
		}
	}
	pc, err := m.Lab.Bridge().ListenUDP(":53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); answerDNS(pc) }()
	defer func() { _ = pc.Close(); <-done }()
	if got := dig(t, m.front, "+short", "www.example.org"); got != "192.0.2.7" {
		t.Errorf("www.example.org: %q", got)
	}
	if got := dig(t, m.front, "+short", "data"); !strings.HasPrefix(got, "240.240.") {
		t.Errorf("data: %q", got)
	}
}

// answerDNS is a resolver of the world outside: every name is 192.0.2.7.
func answerDNS(pc *net.UDPConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var msg dnsmessage.Message
		if msg.Unpack(buf[:n]) != nil || len(msg.Questions) == 0 {
			continue
		}
		msg.Response, msg.RecursionAvailable, msg.Additionals = true, true, nil
		if q := msg.Questions[0]; q.Type == dnsmessage.TypeA {
			msg.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}},
			}}
		}
		if out, err := msg.Pack(); err == nil {
			_, _ = pc.WriteToUDPAddrPort(out, from)
		}
	}
}
