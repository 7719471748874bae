package dns

import (
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// dig is somebody else's idea of the protocol.
func dig(t *testing.T, s *Server, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("dig")
	if err != nil {
		t.Fatalf("this test needs dig (package bind9-dnsutils): %v", err)
	}
	own := s.Addrs()[0]
	all := append([]string{"@" + own.Addr().String(), "-p", strconv.Itoa(int(own.Port())), "+tries=1", "+time=5"}, args...)
	out, err := exec.Command(path, all...).CombinedOutput()
	if err != nil {
		t.Fatalf("dig %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestDigUnderstandsTheAnswers(t *testing.T) {
	up := upstream(t, func(q []byte, network string) [][]byte { return [][]byte{echo(t, q, 100, nil)} })
	s := serve(t, Config{Upstreams: []netip.AddrPort{up}})
	for _, tc := range []struct {
		args string
		want []string
	}{
		{"reviews A +short", []string{reviewsV4.String()}},
		{"reviews.shop.svc.cluster.local AAAA +short", []string{reviewsV6.String()}},
		{"reviews A +tcp +short", []string{reviewsV4.String()}},
		{"reviews A", []string{"status: NOERROR", "flags: qr aa rd ra", "ANSWER: 1", "EDNS: version: 0"}},
		{"reviews A +noedns", []string{"status: NOERROR", "ADDITIONAL: 0"}},
		{"reviews MX", []string{"status: NOERROR", "ANSWER: 0"}},
		{"reviews A +edns=1 +noednsneg", []string{"status: BADVERS"}},
		{"reviews A +dnssec +cookie +subnet=10.0.0.0/8", []string{"status: NOERROR", "ANSWER: 1"}},
		{"reviews A +opcode=notify +noedns", []string{"status: NOTIMP"}},
		{"big.example.com A +ignore +bufsize=1232", []string{"flags: qr tc rd ra"}},
		{"big.example.com A +bufsize=1232", []string{"Truncated, retrying in TCP mode", "ANSWER: 100"}},
		{"big.example.com A +tcp", []string{"status: NOERROR", "ANSWER: 100"}},
	} {
		out := dig(t, s, strings.Fields(tc.args)...)
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("dig %s: no %q in\n%s", tc.args, want, out)
			}
		}
		if strings.Contains(out, "WARNING") {
			t.Errorf("dig %s warns:\n%s", tc.args, out)
		}
	}
}
