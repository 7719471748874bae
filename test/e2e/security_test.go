package e2e

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// secureMesh is a service that nobody may call yet, a frontend and a host
// outside the mesh. Port 8001 is HTTP, 9001 an echo server for TCP.
type secureMesh struct {
	*meshlab.Mesh
	front, node, outside *meshlab.Node
	app                  *app
}

func newSecureMesh(t *testing.T) *secureMesh {
	m := &secureMesh{Mesh: start(t)}
	m.node = bare(t, m.Mesh, "vault")
	m.app = serve(t, m.node, "vault", 8001, nil)
	echoServer(t, m.node, 9001, "")
	enter(t, m.Mesh, m.node, meshlab.Workload{Host: "vault", Service: "vault", Ports: []string{"8001", "9001/tcp"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	m.outside = bare(t, m.Mesh, "outside")
	set(t, m.Mesh, `{"resilience":{"retry":{"delay":0.01}}}`)
	return m
}

// echoServer gives back what it gets, after a greeting if there is one.
func echoServer(t *testing.T, n *meshlab.Node, port int, greeting string) net.Listener {
	t.Helper()
	ln, err := n.ListenTCP(fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.WriteString(c, greeting)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln
}

// rule adds a security rule, and takes it away at the end of the test.
func (m *secureMesh) rule(t *testing.T, r policy.SecurityRule) (id string) {
	t.Helper()
	id, err := m.API.AddSecurityRule(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := m.API.DeleteSecurityRule(context.Background(), id)
		if err != nil && !strings.Contains(err.Error(), "no ") && !strings.Contains(err.Error(), "not found") {
			t.Error(err)
		}
	})
	return id
}

// until asks until the answer has the status and the weir-error word.
func (m *secureMesh) until(t *testing.T, n *meshlab.Node, status int, word string, args ...string) answer {
	t.Helper()
	var a answer
	await(t, m.Mesh, fmt.Sprintf("status %d", status), func() error {
		if a = ask(t, n, args...); a.Status != status || a.Header.Get("weir-error") != word {
			return fmt.Errorf("%d %q: %s", a.Status, a.Header.Get("weir-error"), a.Body)
		}
		return nil
	})
	return a
}

const denial = `{"error":"Access denied by security policy"}` + "\n"

func TestOnlyWhatARuleAllowsReachesTheApp(t *testing.T) {
	m := newSecureMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *secureMesh)
	}{
		{"WithoutARuleItIs403", noRule},
		{"AMethodThatNoRuleNamesIs403", methodDenied},
		{"ARuleForOneCallerIsNotForAnother", otherCaller},
		{"DefaultPolicyAllowLetsAllWorkloadsIn", defaultAllow},
		{"ATokenIsAskedForAndChecked", requiredJWT},
		{"ALimitByTokenSubjectCountsEach", limitBySubject},
		{"TheMTLSModeDecidesAboutPlaintextWithoutARestart", mtlsModes},
		{"ARulesOwnModeDecidesForItsCallers", ruleModes},
		{"ALiveConnectionIsCutWithItsRule", cutLive},
		{"ACertificateNamesItsService", certificates},
		{"APeerWithoutACertificateOfTheMeshIsRefused", strangers},
		{"ACopiedUIDDoesNotPassByTheProxy", copiedUID},
	} {
		t.Run(c.name, func(t *testing.T) { m.app.forget(); c.run(t, m) })
	}
}

func noRule(t *testing.T, m *secureMesh) {
	a := ask(t, m.front, "http://vault:8001/")
	a.want(t, 403, "no-rule", denial)
	if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("X-Request-ID") == "" {
		t.Errorf("head %v", a.Header)
	}
	ask(t, m.outside, "http://"+m.node.Join(8001)+"/").want(t, 403, "mtls-required", denial)
	// By the address in place of the name it is no different.
	ask(t, m.front, "http://"+m.node.Join(8001)+"/").want(t, 403, "no-rule", denial)
	// Nor for the raw port, which can only be refused as a whole.
	if out, err := echoed(t.Context(), m.front, "vault:9001", "hello"); out != "" {
		t.Errorf("raw bytes came back: %q, %v", out, err)
	}
	if m.app.count() != 0 {
		t.Errorf("the app saw %q", m.app.targets())
	}
}

func methodDenied(t *testing.T, m *secureMesh) {
	r := allMethods("frontend", "vault")
	r.AllowedMethods = []string{"GET"}
	m.rule(t, r)
	m.until(t, m.front, 200, "", "http://vault:8001/")
	ask(t, m.front, "-d", "x", "http://vault:8001/").want(t, 403, "method", denial)
	ask(t, m.front, "-X", "get", "http://vault:8001/").want(t, 403, "method", denial)
	ask(t, m.front, "-I", "http://vault:8001/").want(t, 403, "method", "")
	// A connection whose methods cannot be seen may carry any.
	if out, err := echoed(t.Context(), m.front, "vault:9001", "hello"); out != "" {
		t.Errorf("raw bytes came back: %q, %v", out, err)
	}
}

func otherCaller(t *testing.T, m *secureMesh) {
	m.rule(t, allMethods("somebody", "vault"))
	elsewhere := allMethods("frontend", "vault")
	elsewhere.SourceNamespace = "other"
	m.rule(t, elsewhere)
	id := m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/") // all three are in force
	if err := m.API.DeleteSecurityRule(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	m.until(t, m.front, 403, "no-rule", "http://vault:8001/")
}

func defaultAllow(t *testing.T, m *secureMesh) {
	set(t, m.Mesh, `{"default_policy":"allow"}`)
	m.until(t, m.front, 200, "", "http://vault:8001/")
	ask(t, m.outside, "http://"+m.node.Join(8001)+"/").want(t, 403, "mtls-required", denial)
	set(t, m.Mesh, `{"default_policy":"deny"}`)
	m.until(t, m.front, 403, "no-rule", "http://vault:8001/")
}

// bearer makes curl's arguments with a token.
func bearer(t *testing.T, method jwt.SigningMethod, key any, claims jwt.MapClaims) []string {
	t.Helper()
	token, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"-H", "Authorization: Bearer " + token, "http://vault:8001/"}
}

const jwtSecret = "a secret of more than 32 bytes, as HS256 wants"

func requiredJWT(t *testing.T, m *secureMesh) {
	r := allMethods("frontend", "vault")
	r.RequiredJWT = true
	m.rule(t, r)
	later, before := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	hs := jwt.SigningMethodHS256
	good := bearer(t, hs, []byte(jwtSecret), jwt.MapClaims{"sub": "u1", "exp": later})
	const missing, invalid = `{"error":"Authentication required"}` + "\n", `{"error":"Invalid token"}` + "\n"
	a := m.until(t, m.front, 401, "token-missing", "http://vault:8001/")
	a.want(t, 401, "token-missing", missing)
	if a.Header.Get("WWW-Authenticate") == "" {
		t.Error("a 401 without WWW-Authenticate")
	}
	ask(t, m.front, good...).want(t, 401, "token-invalid", invalid) // no secret is set: no token holds
	set(t, m.Mesh, fmt.Sprintf(`{"security":{"jwt_secret":%q}}`, jwtSecret))
	m.until(t, m.front, 200, "", good...)
	for name, args := range map[string][]string{
		"expired":       bearer(t, hs, []byte(jwtSecret), jwt.MapClaims{"exp": before}),
		"not yet valid": bearer(t, hs, []byte(jwtSecret), jwt.MapClaims{"nbf": later, "exp": later}),
		"other secret":  bearer(t, hs, []byte("another secret, as long as the right one is"), jwt.MapClaims{"exp": later}),
		"no signature":  bearer(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, jwt.MapClaims{"exp": later}),
		"other method":  bearer(t, jwt.SigningMethodHS512, []byte(jwtSecret), jwt.MapClaims{"exp": later}),
		"nonsense":      {"-H", "Authorization: Bearer abc", "http://vault:8001/"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { ask(t, m.front, args...).want(t, 401, "token-invalid", invalid) })
	}
	ask(t, m.front, "-u", "user:password", "http://vault:8001/").want(t, 401, "token-missing", missing)
	if got := len(m.app.targets()); got != 1 {
		t.Errorf("the app saw %d requests, one had a good token", got)
	}
	if settings, err := m.API.Settings(t.Context()); err != nil || strings.Contains(fmt.Sprint(settings), jwtSecret) {
		t.Errorf("the API gives the secret away, or %v", err)
	}
}

func limitBySubject(t *testing.T, m *secureMesh) {
	r := allMethods("frontend", "vault")
	r.RequiredJWT = true
	m.rule(t, r)
	set(t, m.Mesh, fmt.Sprintf(`{"security":{"jwt_secret":%q},"services":{"vault":{"rate_limit":{"limit":2,"window":60,"key":"jwt:sub"}}}}`, jwtSecret))
	defer set(t, m.Mesh, `{"services":{"vault":{"rate_limit":{"limit":0}}}}`)
	token := func(sub string) []string {
		return bearer(t, jwt.SigningMethodHS256, []byte(jwtSecret), jwt.MapClaims{"sub": sub})
	}
	await(t, m.Mesh, "the limit", func() error {
		a := ask(t, m.front, token("warm-up")...)
		if a.Header.Get("RateLimit-Policy") == "" {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	for _, sub := range []string{"u1", "u2"} {
		var got []int
		for range 3 {
			got = append(got, ask(t, m.front, token(sub)...).Status)
		}
		if fmt.Sprint(got) != "[200 200 429]" {
			t.Errorf("%s got %v", sub, got)
		}
	}
}

func mtlsModes(t *testing.T, m *secureMesh) {
	anybody := allMethods("*", "vault")
	anybody.SourceNamespace = "*"
	m.rule(t, anybody)
	defer set(t, m.Mesh, `{"mtls_mode":"strict"}`)
	plain := []string{"-H", "X-Source-Service: admin", "http://" + m.node.Join(8001) + "/"}
	const marker = "/the-word-on-the-wire"
	pid := m.node.Proxy.Pid()
	for _, c := range []struct {
		mode    string
		outside int
		onWire  bool
	}{{"strict", 403, false}, {"permissive", 200, false}, {"disabled", 200, true}, {"strict", 403, false}} {
		t.Run(c.mode, func(t *testing.T) {
			set(t, m.Mesh, fmt.Sprintf(`{"mtls_mode":%q}`, c.mode))
			word := ""
			if c.outside == 403 {
				word = "mtls-required"
			}
			a := m.until(t, m.outside, c.outside, word, plain...)
			if a.Status == 200 && len(seenBy(t, a).Header["X-Source-Service"]) != 0 {
				t.Errorf("a caller without a certificate is %q to the app", seenBy(t, a).Header["X-Source-Service"])
			}
			if out, err := echoed(t.Context(), m.outside, m.node.Join(9001), "hello"); (out == "hello") != (c.outside == 200) {
				t.Errorf("raw bytes came back as %q, %v", out, err)
			}
			await(t, m.Mesh, "the wire to show it", func() error {
				var status int
				wire := capture(t, m.Mesh, func() { status = ask(t, m.front, "http://vault:8001"+marker).Status })
				if status != 200 || strings.Contains(wire, marker) != c.onWire {
					return fmt.Errorf("status %d, plaintext on the wire: %v", status, strings.Contains(wire, marker))
				}
				return nil
			})
		})
	}
	if m.node.Proxy.Pid() != pid {
		t.Error("the proxy was restarted")
	}
	select {
	case <-m.node.Proxy.Done():
		t.Error("the proxy ended")
	default:
	}
}

// capture gives all the frames that crossed the bridge while f ran.
func capture(t *testing.T, m *meshlab.Mesh, f func()) string {
	t.Helper()
	fd := -1
	err := m.Lab.Bridge().Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		// Enough for what a test sends: nobody reads before its end. In a user
		// namespace it is less, and what is lost is counted below.
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); errors.Is(err, unix.EPERM) {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<20)
		}
		return err
	})
	if fd >= 0 {
		defer func() { _ = unix.Close(fd) }()
	}
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	f()
	var all []byte
	buf := make([]byte, 70_000)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatalf("capture: %v", err)
		}
		all = append(all, buf[:n]...)
	}
	if stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 || len(all) < 500 {
		t.Errorf("captured %d bytes, %+v, %v", len(all), stats, err)
	}
	return string(all)
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)}) }

func ruleModes(t *testing.T, m *secureMesh) {
	plain := "http://" + m.node.Join(8001) + "/"
	t.Run("permissive", func(t *testing.T) {
		r := allMethods("*", "vault")
		r.SourceNamespace, r.MTLSMode = "*", policy.Permissive
		m.rule(t, r)
		m.until(t, m.outside, 200, "", plain)
		m.until(t, m.front, 200, "", "http://vault:8001/")
	})
	m.until(t, m.outside, 403, "mtls-required", plain)
	t.Run("disabled", func(t *testing.T) {
		r := allMethods("frontend", "vault")
		r.MTLSMode = policy.Disabled
		m.rule(t, r)
		const marker = "/rule-disables-mtls"
		await(t, m.Mesh, "plaintext on the wire", func() error {
			var status int
			if wire := capture(t, m.Mesh, func() { status = ask(t, m.front, "http://vault:8001"+marker).Status }); status != 200 || !strings.Contains(wire, marker) {
				return fmt.Errorf("status %d, plaintext %v", status, strings.Contains(wire, marker))
			}
			return nil
		})
		ask(t, m.outside, plain).want(t, 403, "mtls-required", denial) // the rule is for the frontend's address only
	})
	m.until(t, m.front, 403, "no-rule", "http://vault:8001/")
}

func cutLive(t *testing.T, m *secureMesh) {
	other := m.rule(t, allMethods("somebody", "vault"))
	id := m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	c, err := m.front.DialContext(t.Context(), "tcp", "vault:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	say := func(text string) error {
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, len(text)))
		return err
	}
	if err := say("hello"); err != nil {
		t.Fatal(err)
	}
	if err := m.API.DeleteSecurityRule(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if err := say("still here"); err != nil {
		t.Errorf("another rule's end cut the connection: %v", err)
	}
	if err := m.API.DeleteSecurityRule(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var ne net.Error
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.As(err, &ne) && ne.Timeout() {
		t.Errorf("after its rule was deleted the connection gave %d bytes, %v", n, err)
	}
	m.until(t, m.front, 403, "no-rule", "http://vault:8001/")
}

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
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 24*time.Hour || life > 24*time.Hour+5*time.Minute || time.Since(leaf.NotBefore) < time.Minute {
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

// otherUsers tells whether there are others than root: not so in a user
// namespace that knows only one.
func otherUsers() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Contains(string(b), "4294967295")
}

func copiedUID(t *testing.T, m *secureMesh) {
	if !otherUsers() {
		// Then the proxy runs as root, and so does its app: this is that case.
		ask(t, m.front, "http://vault:8001/").want(t, 403, "no-rule", denial)
		return
	}
	uid := fmt.Sprint(meshlab.ProxyUID)
	for _, target := range []string{"http://vault:8001/", "http://" + m.node.Join(8001) + "/"} {
		out, err := m.front.Output(t.Context(), "setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "curl", "-sS", "-i", "--max-time", "10", target)
		if err != nil || !strings.Contains(out, "weir-error: no-rule") {
			t.Errorf("under the proxy's uid %s gave %q, %v", target, out, err)
		}
	}
}

func TestAJoinTokenThatDoesNotHoldIsRefusedWithAdvice(t *testing.T) {
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
		{"expired", expired, "the join token expired at "},
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

func TestTheAppsOwnTLSIsNeverTouched(t *testing.T) {
	m := start(t)
	n := bare(t, m, "shop")
	dir := filepath.Join(m.Dir, "tls")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	key, cert := filepath.Join(dir, "key"), filepath.Join(dir, "cert")
	if _, err := n.Output(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=shop", "-addext", "subjectAltName=DNS:shop", "-keyout", key, "-out", cert); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"8443", "8444", "8445"} {
		if _, err := n.Start(t.Context(), "openssl-"+port, atoi(port), "openssl", "s_server", "-accept", port, "-key", key, "-cert", cert, "-www", "-quiet"); err != nil {
			t.Fatal(err)
		}
	}
	// The same server behind a port declared as TLS, as TCP, and as nothing.
	enter(t, m, n, meshlab.Workload{Host: "shop", Service: "shop", Ports: []string{"8443/tls", "8444/tcp", "8445"}})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	outside := bare(t, m, "outside")
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "shop")); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"8443", "8444", "8445"} {
		await(t, m, "port "+port, func() error {
			out, err := front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "--cacert", cert, "-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}", "https://shop:"+port+"/")
			if out != "200 0" {
				return fmt.Errorf("%q, %w", out, err)
			}
			return nil
		})
		certs, out := shown(t, front, "-connect", "shop:"+port, "-servername", "shop")
		if len(certs) != 1 || certs[0].Subject.CommonName != "shop" {
			t.Errorf("port %s shows %d certificates:\n%s", port, len(certs), out)
		}
	}
	// From outside it is plaintext to the mesh: strict refuses it, and permissive
	// leaves it alone just as well.
	r := allMethods("*", "shop")
	r.SourceNamespace = "*"
	if _, err := m.API.AddSecurityRule(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	direct := []string{"-sS", "--max-time", "10", "-k", "-o", "/dev/null", "-w", "%{http_code}", "https://" + n.Join(8443) + "/"}
	if out, err := outside.Output(t.Context(), "curl", direct...); err == nil {
		t.Errorf("strict let it in: %s", out)
	}
	set(t, m, `{"mtls_mode":"permissive"}`)
	await(t, m, "permissive to take it", func() error {
		out, err := outside.Output(t.Context(), "curl", direct...)
		if out != "200" {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
}

func TestAnUpgradedConnectionIsCutWithItsRule(t *testing.T) {
	m := start(t)
	n := bare(t, m, "chat")
	serve(t, n, "chat", 8001, func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(c, rw)
	})
	enter(t, m, n, meshlab.Workload{Host: "chat", Service: "chat", Ports: []string{"8001"}})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	id := allow(t, m, "frontend", "chat")
	const request = "GET / HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
	var c net.Conn
	await(t, m, "the upgrade", func() (err error) {
		if c, err = front.DialContext(t.Context(), "tcp", "chat:8001"); err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
		buf := make([]byte, 4096)
		k, err := c.Read(buf)
		if !strings.HasPrefix(string(buf[:k]), "HTTP/1.1 101 ") {
			_ = c.Close()
			return fmt.Errorf("%q, %w", buf[:k], err)
		}
		return nil
	})
	defer func() { _ = c.Close() }()
	if err := m.API.DeleteSecurityRule(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var ne net.Error
	if k, err := c.Read(make([]byte, 1)); k != 0 || err == nil || errors.As(err, &ne) && ne.Timeout() {
		t.Errorf("after its rule was deleted the connection gave %d bytes, %v", k, err)
	}
}
