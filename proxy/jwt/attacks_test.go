package jwt

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// login is an issuer of which we know public keys.
type login struct {
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	ed  ed25519.PrivateKey
}

const issuerName = "https://login.example"

func newLogin(t testing.TB) *login {
	t.Helper()
	l := &login{}
	var errs [3]error
	l.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 2048)
	l.ec, errs[1] = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, l.ed, errs[2] = ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return l
}

// set is the issuer's JWK set.
func (l *login) set(more ...jose.JSONWebKey) []byte {
	s := jose.JSONWebKeySet{Keys: append(more,
		jose.JSONWebKey{Key: &l.rsa.PublicKey, KeyID: "rsa", Algorithm: "RS256", Use: "sig"},
		jose.JSONWebKey{Key: &l.ec.PublicKey, KeyID: "ec"},
		jose.JSONWebKey{Key: l.ed.Public(), KeyID: "ed"})}
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return b
}

// sign signs by hand with one of the issuer's keys.
func (l *login) sign(header, payload, with string) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(payload))
	sum := sha256.Sum256([]byte(text))
	var signature []byte
	var err error
	switch with {
	case "rsa":
		signature, err = rsa.SignPKCS1v15(rand.Reader, l.rsa, crypto.SHA256, sum[:])
	case "ec":
		var r, s *big.Int
		r, s, err = ecdsa.Sign(rand.Reader, l.ec, sum[:])
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case "ed":
		signature = ed25519.Sign(l.ed, []byte(text))
	}
	if err != nil {
		panic(err)
	}
	return text + "." + enc(signature)
}

// verifier believes the issuer, by a file with its keys.
func (l *login) verifier(t testing.TB, change ...func(*Issuer)) *Verifier {
	t.Helper()
	is := Issuer{Name: issuerName, Audiences: []string{"shop"}, Source: Source{KeysFile: filepath.Join(t.TempDir(), "keys")}}
	for _, f := range change {
		f(&is)
	}
	if err := os.WriteFile(is.Source.KeysFile, l.set(), 0o600); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(Config{Issuers: []Issuer{is}}, nil)
	if err := v.rings[0].fetch(context.Background()); err != nil {
		t.Fatal(err)
	}
	return v
}

func payload(more string) string {
	return fmt.Sprintf(`{"iss":%q,"aud":"shop","sub":"ann","exp":%d%s}`, issuerName, at(time.Hour), more)
}

func TestTokensOfAnIssuerHold(t *testing.T) {
	l := newLogin(t)
	v := l.verifier(t)
	for name, token := range map[string]string{
		"RS256":                 l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(""), "rsa"),
		"ES256":                 l.sign(`{"alg":"ES256","kid":"ec"}`, payload(""), "ec"),
		"EdDSA":                 l.sign(`{"alg":"EdDSA","kid":"ed"}`, payload(""), "ed"),
		"without a kid":         l.sign(`{"alg":"ES256"}`, payload(""), "ec"),
		"several audiences":     l.sign(`{"alg":"EdDSA"}`, strings.Replace(payload(""), `"shop"`, `["bank","shop"]`, 1), "ed"),
		"a jku that is ignored": l.sign(`{"alg":"EdDSA","kid":"ed","jku":"http://127.0.0.1:1/"}`, payload(""), "ed"),
	} {
		if c, err := v.Verify("Bearer "+token, noon); err != nil || c.Subject != "ann" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestAttacksOnAnIssuersTokensFail(t *testing.T) {
	l, other := newLogin(t), newLogin(t)
	der, _ := x509.MarshalPKIXPublicKey(&l.rsa.PublicKey)
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	edRaw := []byte(l.ed.Public().(ed25519.PublicKey))
	own, _ := json.Marshal(jose.JSONWebKey{Key: &other.rsa.PublicKey, KeyID: "rsa"})
	plain := payload("")
	good := l.sign(`{"alg":"RS256","kid":"rsa"}`, plain, "rsa")
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"another's key":                     other.sign(`{"alg":"RS256","kid":"rsa"}`, plain, "rsa"),
		"HS256 by the public key, PEM":      token(`{"alg":"HS256","kid":"rsa"}`, plain, asPEM),
		"HS256 by the public key, DER":      token(`{"alg":"HS256","kid":"rsa"}`, plain, der),
		"HS256 by the public key, raw":      token(`{"alg":"HS256","kid":"ed"}`, plain, edRaw),
		"HS256 by the key set":              token(`{"alg":"HS256"}`, plain, l.set()),
		"HS256 by nothing":                  token(`{"alg":"HS256"}`, plain, nil),
		"none":                              strings.TrimSuffix(token(`{"alg":"none"}`, plain, nil), "x"),
		"none without a signature":          parts[0] + "." + parts[1] + ".",
		"nOnE":                              token(`{"alg":"nOnE","kid":"rsa"}`, plain, nil),
		"RS256 signed as ES256":             l.sign(`{"alg":"ES256","kid":"rsa"}`, plain, "rsa"),
		"the key of another kind":           l.sign(`{"alg":"RS256","kid":"ec"}`, plain, "rsa"),
		"RS512":                             l.sign(`{"alg":"RS512","kid":"rsa"}`, plain, "rsa"),
		"PS256":                             l.sign(`{"alg":"PS256","kid":"rsa"}`, plain, "rsa"),
		"kid of no key":                     l.sign(`{"alg":"RS256","kid":"new"}`, plain, "rsa"),
		"kid with a path":                   token(`{"alg":"HS256","kid":"../../../../dev/null"}`, plain, nil),
		"kid with a path, RS256":            other.sign(`{"alg":"RS256","kid":"/proc/self/environ"}`, plain, "rsa"),
		"kid with SQL":                      other.sign(`{"alg":"RS256","kid":"x' UNION SELECT 'key"}`, plain, "rsa"),
		"kid is a list":                     l.sign(`{"alg":"RS256","kid":["rsa"]}`, plain, "rsa"),
		"kid is null":                       l.sign(`{"alg":"RS256","kid":null}`, plain, "rsa"),
		"its own key in jwk":                other.sign(`{"alg":"RS256","jwk":`+string(own)+`}`, plain, "rsa"),
		"its own key by jku":                other.sign(`{"alg":"RS256","kid":"rsa","jku":"https://evil.example/keys"}`, plain, "rsa"),
		"its own key by x5u":                other.sign(`{"alg":"RS256","kid":"rsa","x5u":"https://evil.example/c.pem"}`, plain, "rsa"),
		"its own key in x5c":                other.sign(`{"alg":"RS256","x5c":["`+base64.StdEncoding.EncodeToString(der)+`"]}`, plain, "rsa"),
		"crit":                              l.sign(`{"alg":"RS256","kid":"rsa","crit":["exp"]}`, plain, "rsa"),
		"crit, empty":                       l.sign(`{"alg":"RS256","kid":"rsa","crit":[]}`, plain, "rsa"),
		"b64 false":                         l.sign(`{"alg":"RS256","kid":"rsa","b64":false,"crit":["b64"]}`, plain, "rsa"),
		"alg twice":                         l.sign(`{"alg":"none","alg":"RS256","kid":"rsa"}`, plain, "rsa"),
		"sub twice":                         l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(`,"sub":"root"`), "rsa"),
		"sub twice, escaped":                l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(`,"\u0073ub":"root"`), "rsa"),
		"a member twice, deep":              l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(`,"a":[{"b":1,"b":2}]`), "rsa"),
		"more JSON behind":                  l.sign(`{"alg":"RS256","kid":"rsa"}`, plain+`{"sub":"root"}`, "rsa"),
		"another issuer":                    l.sign(`{"alg":"RS256","kid":"rsa"}`, strings.Replace(plain, issuerName, "https://evil.example", 1), "rsa"),
		"no issuer":                         l.sign(`{"alg":"RS256","kid":"rsa"}`, `{"aud":"shop","exp":4102444800}`, "rsa"),
		"issuer is a list":                  l.sign(`{"alg":"RS256","kid":"rsa"}`, strings.Replace(plain, `"`+issuerName+`"`, `["`+issuerName+`"]`, 1), "rsa"),
		"another audience":                  l.sign(`{"alg":"RS256","kid":"rsa"}`, strings.Replace(plain, "shop", "bank", 1), "rsa"),
		"audience begins alike":             l.sign(`{"alg":"RS256","kid":"rsa"}`, strings.Replace(plain, "shop", "shopping", 1), "rsa"),
		"no audience":                       l.sign(`{"alg":"RS256","kid":"rsa"}`, strings.Replace(plain, `"aud":"shop",`, "", 1), "rsa"),
		"no exp":                            l.sign(`{"alg":"RS256","kid":"rsa"}`, `{"iss":"`+issuerName+`","aud":"shop"}`, "rsa"),
		"exp is null":                       l.sign(`{"alg":"RS256","kid":"rsa"}`, `{"iss":"`+issuerName+`","aud":"shop","exp":null}`, "rsa"),
		"exp is far away, as text":          l.sign(`{"alg":"RS256","kid":"rsa"}`, `{"iss":"`+issuerName+`","aud":"shop","exp":"4102444800"}`, "rsa"),
		"expired":                           l.sign(`{"alg":"RS256","kid":"rsa"}`, payloadUntil(-Leeway-time.Second), "rsa"),
		"claims of one, signature of two":   parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(payload(`,"admin":true`))) + "." + parts[2],
		"header of one, signature of two":   base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + parts[1] + "." + parts[2],
		"a JWE's five parts":                good + ".x.y",
		"JSON serialization":                `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"huge":                              l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(`,"x":"`+strings.Repeat("x", maxToken)+`"`), "rsa"),
		"deep":                              l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(`,"x":`+strings.Repeat("[", 11_000)), "rsa"),
		"ES256 of zeros":                    zeros(`{"alg":"ES256","kid":"ec"}`, plain, 64),
		"EdDSA of zeros":                    zeros(`{"alg":"EdDSA","kid":"ed"}`, plain, 64),
		"ES256 in the form of certificates": derSigned(l, `{"alg":"ES256","kid":"ec"}`, plain),
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			for range 2 { // what was refused is not remembered as good
				if c, err := l.verifier(t).Verify("Bearer "+token, noon); !errors.Is(err, ErrInvalid) || c.All != nil {
					t.Fatalf("%+v, %v", c, err)
				}
			}
		})
	}
}

func payloadUntil(d time.Duration) string {
	return fmt.Sprintf(`{"iss":%q,"aud":"shop","exp":%d}`, issuerName, at(d))
}

func zeros(header, payload string, n int) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(header)) + "." + enc([]byte(payload)) + "." + enc(make([]byte, n))
}

func derSigned(l *login, header, payload string) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(payload))
	sum := sha256.Sum256([]byte(text))
	signature, err := ecdsa.SignASN1(rand.Reader, l.ec, sum[:])
	if err != nil {
		panic(err)
	}
	return text + "." + enc(signature)
}

func TestASecretOfOneIssuerDoesNotSignForAnother(t *testing.T) {
	l := newLogin(t)
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, l.set(), 0o600); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(Config{Issuers: []Issuer{
		{Name: issuerName, Source: Source{KeysFile: file}},
		{NoExpiry: true, Source: Source{Secret: string(secret)}}, // security.jwt_secret
	}}, nil)
	if err := v.rings[0].fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify("Bearer "+token(hs256, `{"sub":"ann"}`, secret), noon); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify("Bearer "+token(hs256, payload(""), secret), noon); !errors.Is(err, ErrInvalid) {
		t.Error("the secret signed for an issuer with keys of its own")
	}
	if _, err := v.Verify("Bearer "+l.sign(`{"alg":"EdDSA"}`, `{"sub":"ann","exp":4102444800}`, "ed"), noon); !errors.Is(err, ErrInvalid) {
		t.Error("an issuer's key signed for nobody")
	}
}

func TestAnAlgorithmThatIsNotTheIssuersIsRefused(t *testing.T) {
	l := newLogin(t)
	v := l.verifier(t, func(is *Issuer) { is.Algorithms = []string{"ES256"} })
	if _, err := v.Verify("Bearer "+l.sign(`{"alg":"EdDSA"}`, payload(""), "ed"), noon); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if _, err := v.Verify("Bearer "+l.sign(`{"alg":"ES256"}`, payload(""), "ec"), noon); err != nil {
		t.Error(err)
	}
}

func TestKeySetsThatAreNotTaken(t *testing.T) {
	l := newLogin(t)
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	set := func(keys ...jose.JSONWebKey) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, text := range map[string]string{
		"empty": "", "not JSON": "<html>", "no keys": "{}", "null": "null", "another shape": `{"keys":{"a":1}}`,
		"a secret":               set(jose.JSONWebKey{Key: secret, KeyID: "a"}),
		"a private key":          set(jose.JSONWebKey{Key: l.rsa, KeyID: "a"}),
		"for encryption":         set(jose.JSONWebKey{Key: &l.rsa.PublicKey, KeyID: "a", Use: "enc"}),
		"a small key":            set(jose.JSONWebKey{Key: &small.PublicKey, KeyID: "a"}),
		"another curve":          set(jose.JSONWebKey{Key: &p384.PublicKey, KeyID: "a"}),
		"an alg of another kind": set(jose.JSONWebKey{Key: &l.rsa.PublicKey, KeyID: "a", Algorithm: "HS256"}),
		"a point off the curve":  `{"keys":[{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}]}`,
		"too many":               `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{},`, maxKeys+1), ",") + `]}`,
	} {
		if got, err := parseKeys([]byte(text)); err == nil {
			t.Errorf("%s: %d keys", name, len(got.public))
		}
	}
	mixed, err := parseKeys(l.set(jose.JSONWebKey{Key: secret, KeyID: "rsa"}))
	if err != nil || len(mixed.public) != 3 {
		t.Errorf("one that cannot be used hides the others: %v", err)
	}
}

func nbf(d time.Duration) string { return fmt.Sprint(at(d)) }

// FuzzParseKeys asserts that whatever is in a set, only public keys for the one
// algorithm of their kind come out.
func FuzzParseKeys(f *testing.F) {
	l := newLogin(f)
	f.Add(l.set())
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA","alg":"HS256"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQ"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := parseKeys(text)
		if err != nil {
			return
		}
		if len(set.public) == 0 || len(set.public) > maxKeys || set.secret != nil {
			t.Fatalf("%d keys, secret %v", len(set.public), set.secret)
		}
		for _, k := range set.public {
			_, isRSA := k.public.(*rsa.PublicKey)
			_, isEC := k.public.(*ecdsa.PublicKey)
			_, isEd := k.public.(ed25519.PublicKey)
			if want := map[string]bool{"RS256": isRSA, "ES256": isEC, "EdDSA": isEd}; !want[k.alg] {
				t.Fatalf("a %T for %s", k.public, k.alg)
			}
		}
	})
}
