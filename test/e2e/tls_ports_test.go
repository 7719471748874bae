package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// tlsPort is a port of weir's that speaks TLS, as openssl is to come to it.
type tlsPort struct {
	name, addr string
	alpn       string
	client     bool // without a client's certificate it ends the connection
}

// tlsCase is one thing to offer, and whether it is to be taken. What is weak is
// offered with openssl's own objections off.
type tlsCase struct {
	what  string
	args  []string
	taken bool
}

var tlsCases = []tlsCase{
	{"TLS 1.0", []string{"-tls1", "-cipher", "ALL:@SECLEVEL=0"}, false},
	{"TLS 1.1", []string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, false},
	{"TLS 1.2, every cipher", []string{"-tls1_2", "-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"}, false},
	{"TLS 1.3", []string{"-tls1_3"}, true},
	{"TLS_AES_128_GCM_SHA256", []string{"-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"}, true},
	{"TLS_AES_256_GCM_SHA384", []string{"-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"}, true},
	{"TLS_CHACHA20_POLY1305_SHA256", []string{"-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"}, true},
	{"TLS_AES_128_CCM_SHA256", []string{"-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"}, false},
	{"TLS_AES_128_CCM_8_SHA256", []string{"-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_8_SHA256"}, false},
	{"group X25519", []string{"-tls1_3", "-groups", "X25519"}, true},
	{"group P-256", []string{"-tls1_3", "-groups", "P-256"}, true},
	{"group ffdhe2048", []string{"-tls1_3", "-groups", "ffdhe2048"}, false},
}

// handshake offers what a case offers, and tells what was agreed on, "" if nothing.
func (p tlsPort) handshake(ctx context.Context, n *meshlab.Node, args ...string) (agreed, said string) {
	all := append([]string{"-c", `openssl s_client "$@" </dev/null 2>&1`, "s", "-connect", p.addr}, args...)
	if p.alpn != "" {
		all = append(all, "-alpn", p.alpn)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, _ := n.Output(ctx, "sh", all...)
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "New, TLS") {
			agreed = strings.Replace(strings.TrimPrefix(line, "New, "), "Cipher is ", "", 1)
		}
	}
	return agreed, out
}

// tlsPorts runs a mesh with all ports that speak TLS, and a host to come from.
func tlsPorts(t *testing.T) (*meshlab.Mesh, *meshlab.Node, []tlsPort) {
	t.Helper()
	m := start(t)
	app := bare(t, m, "app")
	serve(t, app, "app", 8001, nil)
	enter(t, m, app, meshlab.Workload{Host: "app", Service: "app", Ports: []string{"8001"}})
	other := bare(t, m, "api") // a control plane whose API is not on loopback
	_, err := other.Start(t.Context(), "api", 8081, m.Program("weir"), "control", "--data-dir", filepath.Join(m.Dir, "api"), "--http-addr", other.Join(8080), "--grpc-addr", ":8081")
	if err != nil {
		t.Fatal(err)
	}
	return m, bare(t, m, "outside"), []tlsPort{
		{"proxy", app.Join(8001), "weir", true},
		{"control plane, proxies", m.Planes[0].GRPCAddr(), "h2", false},
		{"control plane, API", other.Join(8080), "http/1.1", false},
	}
}

// TestNoPortSpeaksLessThanTLS13 has openssl, old and weak things allowed, try.
func TestNoPortSpeaksLessThanTLS13(t *testing.T) {
	t.Parallel()
	m, outside, ports := tlsPorts(t)
	for _, p := range ports {
		await(t, m, p.name, func() error {
			if agreed, said := p.handshake(t.Context(), outside); agreed == "" {
				return fmt.Errorf("no handshake:\n%s", said)
			}
			return nil
		})
		for _, c := range tlsCases {
			agreed, said := p.handshake(t.Context(), outside, c.args...)
			if (agreed != "") != c.taken || c.taken && !strings.HasPrefix(agreed, "TLSv1.3,") {
				t.Errorf("%s, %s: agreed on %q, to be taken: %v\n%s", p.name, c.what, agreed, c.taken, said)
			}
			// Else it was openssl that did not offer it.
			if !c.taken && !strings.Contains(said, "alert") && !strings.Contains(said, "no cipher match") {
				t.Errorf("%s, %s: it was not the port that refused:\n%s", p.name, c.what, said)
			}
		}
		if !p.client {
			continue // anybody may come, and is asked for a token or a certificate
		}
		if _, said := p.handshake(t.Context(), outside, "-ign_eof"); !strings.Contains(said, "alert") {
			t.Errorf("%s: without a certificate openssl says:\n%s", p.name, said)
		}
	}
	// The mesh's TLS is told by its ALPN; another's is the app's, and plaintext
	// to strict mode: no answer in TLS.
	for _, alpn := range []string{"", "h2", "http/1.1", "weir2"} {
		p := ports[0]
		p.alpn = alpn
		if agreed, said := p.handshake(t.Context(), outside); agreed != "" {
			t.Errorf("ALPN %q: agreed on %q\n%s", alpn, agreed, said)
		}
	}
}
