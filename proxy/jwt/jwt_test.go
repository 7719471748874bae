package jwt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var (
	secret = []byte("a secret of the gateway and the issuer")
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// token signs by hand, so that the tests do not lean on the library they check.
func token(header, payload string, secret []byte) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + enc(mac.Sum(nil))
}

const hs256 = `{"alg":"HS256","typ":"JWT"}`

func at(offset time.Duration) int64 { return noon.Add(offset).Unix() }

func TestNoTokenIsMissingNotInvalid(t *testing.T) {
	for _, header := range []string{"", " ", "Bearer", "Bearer ", "bearer \t ", "Basic dXNlcjpwYXNz", "Bearertoken", "token"} {
		if _, err := New(secret).Verify(header, noon); err != ErrMissing {
			t.Errorf("%q: %v, want ErrMissing", header, err)
		}
	}
}

func TestTokensThatDoNotHold(t *testing.T) {
	good := token(hs256, `{"sub":"ann"}`, secret)
	parts := strings.Split(good, ".")
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	ecKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	public, _ := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	byRSA, _ := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{"sub": "ann"}).SignedString(rsaKey)
	byEC, _ := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"sub": "ann"}).SignedString(ecKey)
	by512, _ := jwt.NewWithClaims(jwt.SigningMethodHS512, jwt.MapClaims{"sub": "ann"}).SignedString(secret)
	none := token(`{"alg":"none"}`, `{"sub":"ann"}`, secret)
	for name, tc := range map[string]struct {
		token  string
		secret []byte
	}{
		"another secret":           {token(hs256, `{"sub":"ann"}`, []byte("other")), secret},
		"signed with nothing":      {token(hs256, `{"sub":"ann"}`, nil), nil},
		"alg none, no signature":   {none[:strings.LastIndex(none, ".")+1], secret},
		"alg none, a signature":    {none, secret},
		"alg None in capitals":     {token(`{"alg":"NONE"}`, `{"sub":"ann"}`, secret), secret},
		"no alg":                   {token(`{}`, `{"sub":"ann"}`, secret), secret},
		"HS512":                    {by512, secret},
		"RS256":                    {byRSA, secret},
		"RS256, its key as secret": {byRSA, publicPEM},
		"ES256":                    {byEC, secret},
		"changed payload":          {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"bob"}`)) + "." + parts[2], secret},
		"changed header":           {base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + parts[1] + "." + parts[2], secret},
		"two parts":                {parts[0] + "." + parts[1], secret},
		"four parts":               {good + ".x", secret},
		"padding":                  {good + "=", secret},
		"not base64":               {"!." + parts[1] + "." + parts[2], secret},
		"claims are a list":        {token(hs256, `["sub"]`, secret), secret},
		"claims are cut":           {token(hs256, `{"sub":`, secret), secret},
		"subject is a number":      {token(hs256, `{"sub":7}`, secret), secret},
		"expiry is text":           {token(hs256, `{"exp":"tomorrow"}`, secret), secret},
		"critical extension":       {token(`{"alg":"HS256","crit":["b64"],"b64":false}`, `{"sub":"ann"}`, secret), secret},
		"too long":                 {token(hs256, `{"sub":"`+strings.Repeat("a", maxToken)+`"}`, secret), secret},
		"more after a space":       {good + " " + good, secret},
		"expired":                  {token(hs256, fmt.Sprintf(`{"exp":%d}`, at(-Leeway-time.Second)), secret), secret},
		"not valid yet":            {token(hs256, fmt.Sprintf(`{"nbf":%d}`, at(Leeway+time.Second)), secret), secret},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := New(tc.secret).Verify("Bearer "+tc.token, noon)
			if !errors.Is(err, ErrInvalid) || errors.Is(err, ErrMissing) {
				t.Errorf("got %+v, %v; want ErrInvalid", c, err)
			}
			if c.Subject != "" || c.All != nil {
				t.Errorf("claims of a token that does not hold: %+v", c)
			}
		})
	}
}

func TestTokensThatHold(t *testing.T) {
	for name, payload := range map[string]string{
		"plain":                 `{"sub":"ann"}`,
		"expired within leeway": fmt.Sprintf(`{"sub":"ann","exp":%d}`, at(-Leeway+time.Second)),
		"early within leeway":   fmt.Sprintf(`{"sub":"ann","nbf":%d}`, at(Leeway-time.Second)),
		"in its time":           fmt.Sprintf(`{"sub":"ann","nbf":%d,"exp":%d}`, at(-time.Hour), at(time.Hour)),
	} {
		for _, scheme := range []string{"Bearer ", "bearer ", "BEARER   "} {
			if c, err := New(secret).Verify(scheme+token(hs256, payload, secret), noon); err != nil || c.Subject != "ann" {
				t.Errorf("%s with %q: %+v, %v", name, scheme, c, err)
			}
		}
	}
}

func TestClaimsAreThoseOfTheToken(t *testing.T) {
	payload := fmt.Sprintf(`{"sub":"ann","iss":"login","aud":["shop","bank"],"exp":%d,"role":"admin"}`, at(time.Hour))
	c, err := New(secret).Verify("Bearer "+token(hs256, payload, secret), noon)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject != "ann" || c.Issuer != "login" || !slices.Equal(c.Audience, []string{"shop", "bank"}) ||
		!c.Expires.Equal(noon.Add(time.Hour)) || c.All["role"] != "admin" {
		t.Errorf("claims %+v", c)
	}
}

func TestTheSecretIsCopied(t *testing.T) {
	mine := slices.Clone(secret)
	v := New(mine)
	clear(mine)
	if _, err := v.Verify("Bearer "+token(hs256, `{}`, secret), noon); err != nil {
		t.Error(err)
	}
}

func TestErrorTextsAreTheAnswers(t *testing.T) {
	if ErrMissing.Error() != "Authentication required" || ErrInvalid.Error() != "Invalid token" {
		t.Error(ErrMissing, ErrInvalid)
	}
}

// FuzzVerify asserts that whatever is accepted was signed with the secret, by
// a check that does not share code with the one under test.
func FuzzVerify(f *testing.F) {
	f.Add("Bearer " + token(hs256, `{"sub":"ann"}`, secret))
	f.Add("Bearer " + token(`{"alg":"none"}`, `{"sub":"ann"}`, secret))
	f.Add("bearer a.b.c")
	f.Add("")
	v := New(secret)
	f.Fuzz(func(t *testing.T, header string) {
		c, err := v.Verify(header, noon)
		if err != nil {
			if (err == ErrMissing) == errors.Is(err, ErrInvalid) {
				t.Fatalf("error is neither or both: %v", err)
			}
			return
		}
		fields := strings.FieldsFunc(header, func(r rune) bool { return r == ' ' || r == '\t' })
		text, signature, _ := cutLast(fields[len(fields)-1])
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		if got, err := base64.RawURLEncoding.DecodeString(signature); err != nil || !hmac.Equal(got, mac.Sum(nil)) {
			t.Fatalf("accepted a signature that is not ours: %q", header)
		}
		if _, err := json.Marshal(c.All); err != nil {
			t.Fatalf("claims that cannot be passed on: %v", err)
		}
	})
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
