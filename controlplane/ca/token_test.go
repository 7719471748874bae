package ca

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// NewToken makes a token as versions did that kept no record of it.
func (a *Authority) NewToken(name policy.ServiceName, ttl time.Duration) (string, time.Time, error) {
	return a.signToken(name, ttl, "")
}

func TestATokenSaysForWhomAndUntilWhen(t *testing.T) {
	a, at := newAuthority(t)
	token, expires, err := a.NewToken(cart, 0)
	must(t, err)
	if d := expires.Sub(at.Now()); d > DefaultTokenTTL || d <= DefaultTokenTTL-time.Second {
		t.Errorf("it lasts %v", d)
	}
	name, err := a.CheckToken(token)
	if err != nil || name != cart {
		t.Errorf("it is for %v, %v", name, err)
	}
	parts := strings.Split(token, ".")
	body, err := tokenEncoding.DecodeString(parts[1])
	must(t, err)
	var c map[string]any
	must(t, json.Unmarshal(body, &c))
	signer, err := a.signer()
	must(t, err)
	for key, want := range map[string]any{"svc": "cart", "ns": "shop", "td": "weir.local", "ca": signer.root.fingerprint(), "exp": float64(expires.Unix())} {
		if c[key] != want {
			t.Errorf("%s is %v, want %v", key, c[key], want)
		}
	}
	if len(c) != 6 || c["nonce"] == "" || len(signer.root.fingerprint()) != 64 {
		t.Errorf("the claims are %v", c)
	}
	at.Add(expires.Sub(at.Now()) - time.Nanosecond)
	if _, err := a.CheckToken(token); err != nil {
		t.Errorf("just before its end: %v", err)
	}
	at.Add(time.Nanosecond)
	if _, err := a.CheckToken(token); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("at its end: %v", err)
	}
	for _, ttl := range []time.Duration{-1, time.Millisecond, MaxTokenTTL + 1} {
		if _, _, err := a.NewToken(cart, ttl); err == nil {
			t.Errorf("a token for %v was made", ttl)
		}
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	a, _ := newAuthority(t)
	other, _ := newAuthority(t)
	token, _, err := a.NewToken(cart, time.Hour)
	must(t, err)
	foreign, _, err := other.NewToken(cart, time.Hour)
	must(t, err)
	parts, theirs := strings.Split(token, "."), strings.Split(foreign, ".")
	sign := func(body string) string {
		text := tokenVersion + "." + tokenEncoding.EncodeToString([]byte(body))
		return text + "." + tokenEncoding.EncodeToString(a.mac(text))
	}
	future := time.Now().Add(time.Hour).Unix()
	claim := func(c claims) string {
		b, err := json.Marshal(c)
		must(t, err)
		return sign(string(b))
	}
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"empty":                {"", ErrTokenMalformed},
		"a word":               {"token", ErrTokenMalformed},
		"another version":      {"weir2." + parts[1] + "." + parts[2], ErrTokenMalformed},
		"two parts":            {parts[0] + "." + parts[1], ErrTokenMalformed},
		"four parts":           {token + ".x", ErrTokenMalformed},
		"padding":              {token + "=", ErrTokenMalformed},
		"a newline":            {token + "\n", ErrTokenMalformed},
		"spaces":               {" " + token, ErrTokenMalformed},
		"huge":                 {token + strings.Repeat("A", maxToken), ErrTokenMalformed},
		"no signature":         {parts[0] + "." + parts[1] + ".", ErrTokenSignature},
		"half a signature":     {token[:len(token)-3], ErrTokenSignature},
		"another's signature":  {parts[0] + "." + parts[1] + "." + theirs[2], ErrTokenSignature},
		"another mesh's":       {foreign, ErrTokenSignature},
		"another's claims":     {parts[0] + "." + theirs[1] + "." + parts[2], ErrTokenSignature},
		"signed, not JSON":     {sign("x"), ErrTokenMalformed},
		"signed, wrong types":  {sign(`{"svc":1}`), ErrTokenMalformed},
		"another trust domain": {claim(claims{Service: "cart", Namespace: "shop", Domain: "evil.local", Expires: future}), ErrTokenDomain},
		"no end":               {claim(claims{Service: "cart", Namespace: "shop", Domain: "weir.local"}), ErrTokenExpired},
		"the control plane":    {claim(claims{Service: "control", Namespace: "weir-system", Domain: "weir.local", Expires: future}), ErrName},
		"no name":              {claim(claims{Domain: "weir.local", Expires: future}), ErrName},
	} {
		got, err := a.CheckToken(c.token)
		if !errors.Is(err, c.want) || got != (policy.ServiceName{}) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
		if err != nil && len(c.token) > 10 && strings.Contains(err.Error(), c.token) {
			t.Errorf("%s: the error shows the token", name)
		}
	}
}

// A token that is taken was made by us, to the letter.
func FuzzCheckToken(f *testing.F) {
	a, _ := newAuthority(f)
	token, _, err := a.NewToken(cart, time.Hour)
	must(f, err)
	f.Add(token)
	f.Add(token[:len(token)-1])
	f.Add("weir1..")
	f.Add("weir1.e30.")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := a.CheckToken(s)
		if (err == nil) != (s == token) {
			t.Errorf("%q: %v, %v", s, name, err)
		}
	})
}

// Whatever is asked for, the certificate is the service's.
func FuzzIssueForCSR(f *testing.F) {
	a, _ := newAuthority(f)
	f.Add(newCSR(f, emptyCSR, nil))
	f.Add(a.RootPEM())
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := a.IssueForCSR(cart, csr)
		if err != nil {
			if !errors.Is(err, ErrCSR) {
				t.Errorf("%v", err)
			}
			return
		}
		cert := parse(t, chain)
		if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://weir.local/ns/shop/sa/cart" || cert.IsCA {
			t.Errorf("the certificate is %v %v", cert.Subject, cert.URIs)
		}
	})
}
