package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/weir-mesh/weir/test/meshlab"
)

// keySetOf is a JWK set of one key, written by hand (RFC 7517, RFC 8037).
func keySetOf(t *testing.T, id string, public any) string {
	t.Helper()
	enc := base64.RawURLEncoding.EncodeToString
	k := map[string]string{"kid": id, "use": "sig"}
	switch p := public.(type) {
	case *rsa.PublicKey:
		k["kty"], k["n"], k["e"] = "RSA", enc(p.N.Bytes()), enc(big.NewInt(int64(p.E)).Bytes())
	case ed25519.PublicKey:
		k["kty"], k["crv"], k["x"] = "OKP", "Ed25519", enc(p)
	}
	b, err := json.Marshal(map[string]any{"keys": []any{k}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAnIssuersKeysAreFetchedTurnedAndKept has a service of the mesh publish the
// keys of its tokens: what wants them goes there by the mesh, as an app would.
func TestAnIssuersKeysAreFetchedTurnedAndKept(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	login := bare(t, m.Mesh, "login")
	var keys atomic.Pointer[string]
	serve(t, login, "login", 8080, func(w http.ResponseWriter, _ *http.Request) {
		text := keys.Load()
		if text == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte(*text))
	})
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, next, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	first, second := keySetOf(t, "one", &rsaKey.PublicKey), keySetOf(t, "two", public)
	keys.Store(&first)
	enter(t, m.Mesh, login, meshlab.Workload{Host: "login", Service: "login", Ports: []string{"8080"}})
	m.rule(t, allMethods("vault", "login"))
	r := allMethods("frontend", "vault")
	r.RequiredJWT = true
	m.rule(t, r)
	set(t, m.Mesh, `{"security":{"jwt":{"issuers":[{"issuer":"https://login.test","audiences":["vault"],"jwks_url":"http://login:8080/keys"}]}}}`)

	ask := func(method jwt.SigningMethod, id string, key any, change func(jwt.MapClaims)) []string {
		claims := jwt.MapClaims{"iss": "https://login.test", "aud": "vault", "exp": time.Now().Add(time.Hour).Unix()}
		if change != nil {
			change(claims)
		}
		token := jwt.NewWithClaims(method, claims)
		token.Header["kid"] = id
		text, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return []string{"-H", "Authorization: Bearer " + text, "http://vault:8001/"}
	}
	good := ask(jwt.SigningMethodRS256, "one", rsaKey, nil)
	m.until(t, m.front, 200, "", good...)

	der, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"the public key as a secret": ask(jwt.SigningMethodHS256, "one", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil),
		"none":                       ask(jwt.SigningMethodNone, "one", jwt.UnsafeAllowNoneSignatureType, nil),
		"another audience":           ask(jwt.SigningMethodRS256, "one", rsaKey, func(c jwt.MapClaims) { c["aud"] = "bank" }),
		"another issuer":             ask(jwt.SigningMethodRS256, "one", rsaKey, func(c jwt.MapClaims) { c["iss"] = "https://evil.test" }),
		"no exp":                     ask(jwt.SigningMethodRS256, "one", rsaKey, func(c jwt.MapClaims) { delete(c, "exp") }),
	} {
		if a := m.until(t, m.front, 401, "token-invalid", args...); a.Status != 401 {
			t.Errorf("%s: %d", name, a.Status)
		}
	}
	keys.Store(nil) // away: what is known goes on
	m.until(t, m.front, 200, "", good...)
	keys.Store(&second)
	m.until(t, m.front, 200, "", ask(jwt.SigningMethodEdDSA, "two", next, nil)...)
	m.until(t, m.front, 401, "token-invalid", good...) // its key is no more
	var text string
	await(t, m.Mesh, "the counters", func() error {
		text = curl(t, m.node, "http://127.0.0.1:15000/metrics")
		for _, want := range []string{`weir_tokens_total{outcome="valid"}`, `weir_tokens_total{outcome="invalid"}`, `weir_token_keys_fetches_total{outcome="ok",source="http://login:8080/keys"}`} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %s in the metrics", want)
			}
		}
		return nil
	})
}
