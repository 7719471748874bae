// Package jwt verifies bearer tokens.
// It leaves to its user which requests need one, and what is done with the claims.
package jwt

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What a request is refused for. Their text, with a capital, is the body that the client gets.
var (
	// ErrMissing is returned when a request bears no token.
	ErrMissing = errors.New("Authentication required")
	// ErrInvalid is wrapped by every error about a token that is there but does not hold.
	ErrInvalid = errors.New("Invalid token")
)

const (
	// Leeway is how far the clocks of the issuer and of this machine may differ.
	Leeway = 30 * time.Second
	// maxToken bounds the bytes that are decoded before a signature is known to be good.
	maxToken = 16 << 10
)

// Claims is what a verified token says.
type Claims struct {
	Subject  string // "sub"; "" when absent
	Issuer   string // "iss"; "" when absent
	Audience []string
	Expires  time.Time // "exp"; zero when the token does not expire
	// All holds every claim, as encoding/json decodes it. It is the caller's.
	All map[string]any
}

// Verifier checks tokens signed with one secret, HS256 only. It is immutable
// and safe for concurrent use.
type Verifier struct{ secret []byte }

// New returns a Verifier of a secret, which is copied. With an empty secret
// every token is invalid: an empty key would let anybody sign.
func New(secret []byte) *Verifier { return &Verifier{secret: bytes.Clone(secret)} }

// Verify checks the value of an Authorization header (RFC 6750 section 2.1).
// The error is ErrMissing when there is no bearer token in it, and wraps
// ErrInvalid, with the reason, when there is one that does not hold at now.
func (v *Verifier) Verify(authorization string, now time.Time) (Claims, error) {
	token, ok := bearer(authorization)
	if !ok {
		return Claims{}, ErrMissing
	}
	all, err := v.parse(token, now)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return claims(all)
}

// bearer takes the token out of a header's value. The scheme's case does not
// matter (RFC 9110 section 11.1).
func bearer(authorization string) (string, bool) {
	scheme, token, _ := strings.Cut(strings.Trim(authorization, " \t"), " ")
	token = strings.Trim(token, " \t")
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

func (v *Verifier) parse(token string, now time.Time) (jwt.MapClaims, error) {
	if len(v.secret) == 0 {
		return nil, errors.New("no secret is set to verify it with")
	}
	if len(token) > maxToken {
		return nil, fmt.Errorf("%d bytes are more than %d", len(token), maxToken)
	}
	all := jwt.MapClaims{}
	_, err := jwt.NewParser(
		// One method only: a token may not choose how it is checked
		// (RFC 8725 section 3.1), so neither "none" nor an RSA key taken as
		// an HMAC secret gets anywhere.
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithLeeway(Leeway),
		jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(func() time.Time { return now }),
	).ParseWithClaims(token, all, func(t *jwt.Token) (any, error) {
		// Extensions that we do not know must not be ignored (RFC 7515 section 4.1.11).
		if _, ok := t.Header["crit"]; ok {
			return nil, errors.New("its header has critical extensions")
		}
		return v.secret, nil
	})
	return all, err
}

func claims(all jwt.MapClaims) (c Claims, err error) {
	c.All = all
	var errs [4]error
	c.Subject, errs[0] = all.GetSubject()
	c.Issuer, errs[1] = all.GetIssuer()
	var audience jwt.ClaimStrings
	audience, errs[2] = all.GetAudience()
	c.Audience = audience
	expires, err := all.GetExpirationTime()
	if expires != nil {
		c.Expires = expires.Time
	}
	errs[3] = err
	if err := errors.Join(errs[:]...); err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}
