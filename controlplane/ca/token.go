package ca

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

const (
	tokenVersion = "weir1"
	secretSize   = 32
	maxToken     = 4096 // bytes; ours have about 350

	// DefaultTokenTTL and MaxTokenTTL bound how long a join token can be used.
	DefaultTokenTTL = 24 * time.Hour
	MaxTokenTTL     = 365 * 24 * time.Hour
)

// claims are what a token says. The fingerprint lets the holder verify the
// control plane at first contact.
type claims struct {
	Service   string `json:"svc"`
	Namespace string `json:"ns"`
	Expires   int64  `json:"exp"` // Unix seconds
	Nonce     string `json:"nonce"`
	ID        string `json:"id,omitempty"` // of its record; absent in tokens of versions that kept none
	Domain    string `json:"td"`
	CA        string `json:"ca"` // hex SHA-256 of the root's SPKI
}

var tokenEncoding = base64.RawURLEncoding.Strict()

func newSecret() ([]byte, error) {
	secret := make([]byte, secretSize)
	_, err := rand.Read(secret)
	return secret, err
}

// signToken makes the text of a token. id names its record.
func (a *Authority) signToken(name policy.ServiceName, ttl time.Duration, id string) (token string, expires time.Time, err error) {
	if err := errors.Join(checkName(name), a.checkIdentity(name)); err != nil {
		return "", time.Time{}, err
	}
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	if ttl < time.Second || ttl > MaxTokenTTL {
		return "", time.Time{}, fmt.Errorf("lifetime of a token: %v is not in %v..%v", ttl, time.Second, MaxTokenTTL)
	}
	signer, err := a.lasting()
	if err != nil {
		return "", time.Time{}, fmt.Errorf("token for %s: %w", name, err)
	}
	expires = a.cfg.Now().Add(ttl).Truncate(time.Second)
	body, err := json.Marshal(claims{
		Service: name.Name, Namespace: name.Namespace, Expires: expires.Unix(),
		Nonce: rand.Text(), ID: id, Domain: a.domain.Name(), CA: signer.root.fingerprint(),
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("token for %s: %w", name, err)
	}
	text := tokenVersion + "." + tokenEncoding.EncodeToString(body)
	return text + "." + tokenEncoding.EncodeToString(a.mac(text)), expires, nil
}

// CheckToken tells for which service a token is, by the token alone: whether it
// is used up or revoked is in its record. The errors are ErrTokenMalformed,
// ErrTokenSignature, ErrTokenExpired, ErrTokenDomain and ErrRevoked, and never
// show the token.
func (a *Authority) CheckToken(token string) (policy.ServiceName, error) {
	c, err := a.readToken(token)
	if err != nil {
		return policy.ServiceName{}, err
	}
	name := policy.ServiceName{Namespace: c.Namespace, Name: c.Service}
	return name, a.checkFamily(name, a.family(c.Nonce))
}

// family is what the certificates have in common that go back to one token.
func (a *Authority) family(nonce string) uint64 {
	h := hmac.New(sha256.New, a.secret)
	h.Write([]byte("family\x00" + nonce)) // never fails
	return asFamily(h.Sum(nil))
}

func (a *Authority) readToken(token string) (c claims, err error) {
	none := claims{}
	// The decoder passes over line breaks, so they are refused here.
	if len(token) > maxToken || strings.ContainsAny(token, "\r\n") {
		return none, ErrTokenMalformed
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[0] != tokenVersion {
		return none, ErrTokenMalformed
	}
	body, err1 := tokenEncoding.DecodeString(parts[1])
	mac, err2 := tokenEncoding.DecodeString(parts[2])
	if err1 != nil || err2 != nil {
		return none, ErrTokenMalformed
	}
	// The signature comes before anything that the token says.
	if !hmac.Equal(mac, a.mac(parts[0]+"."+parts[1])) {
		return none, ErrTokenSignature
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return none, ErrTokenMalformed
	}
	if c.Domain != a.domain.Name() {
		return none, fmt.Errorf("%w: %q, and this mesh is %q", ErrTokenDomain, c.Domain, a.domain.Name())
	}
	if at := time.Unix(c.Expires, 0); !a.cfg.Now().Before(at) {
		return none, fmt.Errorf("%w at %s", ErrTokenExpired, at.UTC().Format(time.RFC3339))
	}
	name := policy.ServiceName{Namespace: c.Namespace, Name: c.Service}
	if err := checkName(name); err != nil {
		return none, err
	}
	return c, nil
}

func (a *Authority) mac(text string) []byte {
	h := hmac.New(sha256.New, a.secret)
	h.Write([]byte(text)) // never fails
	return h.Sum(nil)
}
