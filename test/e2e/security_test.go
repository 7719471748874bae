package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

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
				// Not spliced, which Go would do: the short cut does not go with it.
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
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
	t.Parallel()
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
	m.until(t, m.front, 403, "no-rule", "http://vault:8001/") // the rules of the stories before are gone
	uid := fmt.Sprint(meshlab.ProxyUID)
	for _, target := range []string{"http://vault:8001/", "http://" + m.node.Join(8001) + "/"} {
		out, err := m.front.Output(t.Context(), "setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "curl", "-sS", "-i", "--max-time", "10", target)
		if err != nil || !strings.Contains(out, "weir-error: no-rule") {
			t.Errorf("under the proxy's uid %s gave %q, %v", target, out, err)
		}
	}
}

func TestAnUpgradedConnectionIsCutWithItsRule(t *testing.T) {
	t.Parallel()
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
