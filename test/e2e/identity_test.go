package e2e

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// shown are the certificates that a server shows to openssl.
func shown(t *testing.T, n *meshlab.Node, args ...string) ([]*x509.Certificate, string) {
	t.Helper()
	out, _ := n.Output(t.Context(), "sh", append([]string{"-c", `openssl s_client -showcerts "$@" </dev/null 2>&1`, "s"}, args...)...)
	var certs []*x509.Certificate
	for rest := []byte(out); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certs, out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, c)
		}
	}
}

func certificates(t *testing.T, m *secureMesh) {
	certs, out := shown(t, m.outside, "-connect", m.node.Join(8001), "-alpn", "weir")
	if len(certs) == 0 {
		t.Fatalf("no certificate was shown:\n%s", out)
	}
	leaf := certs[0]
	if leaf.Subject.CommonName != "default.vault" {
		t.Errorf("CN %s", leaf.Subject.CommonName)
	}
	slices.Sort(leaf.DNSNames)
	if !slices.Equal(leaf.DNSNames, []string{"default.vault", "vault.default.svc.cluster.local"}) || len(leaf.URIs) != 1 ||
		leaf.URIs[0].String() != "spiffe://weir.local/ns/default/sa/vault" {
		t.Errorf("SANs %v, %v", leaf.DNSNames, leaf.URIs)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 24*time.Hour || life > 24*time.Hour+15*time.Minute || time.Since(leaf.NotBefore) < time.Minute {
		t.Errorf("from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
	root, err := m.API.RootPEM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(root) {
		t.Fatalf("the root: %q", root)
	}
	middle := x509.NewCertPool()
	for _, c := range certs[1:] {
		middle.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle}); err != nil {
		t.Error(err)
	}
	// openssl, which is nobody's relative, agrees.
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	leafPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	if out, err := m.outside.Output(t.Context(), "openssl", "verify", "-CAfile", write("root", root), write("leaf", leafPEM)); err != nil {
		t.Errorf("openssl verify: %v %s", err, out)
	}
	if !strings.Contains(out, "TLSv1.3") {
		t.Errorf("not TLS 1.3:\n%s", out)
	}
	if certs, out := shown(t, m.outside, "-connect", m.node.Join(8001), "-alpn", "weir", "-tls1_2"); len(certs) != 0 {
		t.Errorf("TLS 1.2 was taken:\n%s", out)
	}
}

func strangers(t *testing.T, m *secureMesh) {
	r := allMethods("*", "vault")
	r.SourceNamespace = "*"
	m.rule(t, r)
	m.until(t, m.front, 200, "", "http://vault:8001/")
	m.app.forget()
	dir := t.TempDir()
	key, cert := filepath.Join(dir, "key"), filepath.Join(dir, "cert")
	if _, err := m.outside.Output(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=default.frontend", "-addext", "subjectAltName=URI:spiffe://weir.local/ns/default/sa/frontend", "-keyout", key, "-out", cert); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"none": nil, "one of its own making": {"-key", key, "-cert", cert}} {
		args = append([]string{"-c", `printf 'GET / HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n\r\n' | openssl s_client -quiet -connect "$@" 2>&1`, "s", m.node.Join(8001), "-alpn", "weir"}, args...)
		out, _ := m.outside.Output(t.Context(), "sh", args...)
		if !strings.Contains(out, "alert") || strings.Contains(out, "HTTP/1.1") {
			t.Errorf("with a certificate: %s: %s", name, out)
		}
	}
	if m.app.count() != 0 {
		t.Errorf("the app saw %q", m.app.targets())
	}
}

func TestAJoinTokenThatDoesNotHoldIsRefusedWithAdvice(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "late")
	token := func(service string, ttl time.Duration) string {
		tok, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: service}, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return tok.Token
	}
	good, expired := token("late", time.Hour), token("late", time.Second)
	other := token("other", time.Hour)
	await(t, m, "a token to expire", func() error {
		if out := runProxy(t, m, n, "late", expired); !strings.Contains(out, "expired") {
			return errors.New(out)
		}
		return nil
	})
	for _, c := range []struct{ name, token, want string }{
		{"expired", expired, "expired at "},
		{"of another service", other, "the join token is of default/other, but this proxy is to be default/late"},
		{"changed to name this service", editBody(t, other, `"other"`, `"late"`), "not signed by this mesh"},
		{"nonsense", "hello", "not a join token"},
		{"empty", "", "not a join token"},
		{"of another control plane", otherFingerprint(t, good), "not the one of the join token"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			out := runProxy(t, m, n, "late", c.token)
			if !strings.Contains(out, c.want) || !strings.HasPrefix(out, "exit status 1: ") || c.token != "" && strings.Contains(out, c.token) {
				t.Errorf("want %q, exit status 1 and not the token:\n%s", c.want, out)
			}
			if advice := "weir token create --service late"; !strings.Contains(out, advice) {
				t.Errorf("no advice (%s):\n%s", advice, out)
			}
		})
	}
	out, err := n.Output(t.Context(), m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", "late", "--token-file", filepath.Join(t.TempDir(), "none"))
	if err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), "weir token create --service late") {
		t.Errorf("without the file: %v %s", err, out)
	}
}

// says is the middle part of a token.
func says(t *testing.T, token string) string {
	t.Helper()
	body, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// editBody changes what a token says, and leaves its signature.
func editBody(t *testing.T, token, from, to string) string {
	t.Helper()
	body := says(t, token)
	if !strings.Contains(body, from) {
		t.Fatalf("the token says %s, not %s", body, from)
	}
	parts := strings.Split(token, ".")
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(body, from, to, 1))) + "." + parts[2]
}

// otherFingerprint is the token with one digit of the control plane's
// fingerprint changed.
func otherFingerprint(t *testing.T, token string) string {
	t.Helper()
	body := says(t, token)
	_, rest, found := strings.Cut(body, `"ca":"`)
	if !found {
		t.Fatalf("the token says %s", body)
	}
	digit := rest[:1]
	changed := "0"
	if digit == "0" {
		changed = "1"
	}
	return editBody(t, token, `"ca":"`+digit, `"ca":"`+changed)
}

// runProxy runs a proxy with a token to its end, and gives how it ended and
// what it printed.
func runProxy(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, service, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	out, err := m.Command(ctx, n.Host, m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", service, "--token-file", file).CombinedOutput()
	return fmt.Sprintf("%v: %s", err, out)
}
