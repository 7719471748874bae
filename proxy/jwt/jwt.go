// Package jwt verifies bearer tokens, and keeps the keys of those who issue them.
// It leaves to its user which requests need one, and what is done with the claims.
package jwt

import (
	"errors"
	"fmt"
	"slices"
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
	// ErrExpired is wrapped besides ErrInvalid where a token held once.
	ErrExpired = errors.New("it expired")
)

// UnknownKeyError is wrapped, besides ErrInvalid, where the issuer may have a newer
// key than we know: after Refresh the token may hold.
type UnknownKeyError struct {
	what string
	ring *ring
}

func (e *UnknownKeyError) Error() string { return e.what }

const (
	// Leeway is how far the clocks of the issuer and of this machine may differ, where
	// nothing else is set.
	Leeway = 30 * time.Second
	// maxToken bounds the bytes that are decoded before a signature is known to be good.
	maxToken = 16 << 10
)

// Claims is what a verified token says. Requests with the same token share it: it
// is not to be changed.
type Claims struct {
	Subject  string // "sub"; "" when absent
	Issuer   string // "iss"; "" when absent
	Audience []string
	Expires  time.Time      // "exp"; zero when the token does not expire
	All      map[string]any // every claim, as encoding/json decodes it

	notBefore time.Time // "nbf"; zero when absent
}

// Issuer is whom to believe, and how its tokens are signed.
type Issuer struct {
	Name       string   // what "iss" must be; "" takes the tokens that no other issuer is named for
	Audiences  []string // "aud" must hold one of them; none is any
	Algorithms []string // of the source's kind; none is all of them
	// NoExpiry takes tokens without "exp", which hold for ever.
	NoExpiry bool
	Source   Source
}

// Config is what a Verifier goes by.
type Config struct {
	Issuers []Issuer
	Leeway  time.Duration // 0 is Leeway, negative is none
	Hooks   Hooks
}

// Hooks are told what happened; each may be nil.
type Hooks struct {
	// Fetched hears the outcome of a fetch of keys: nil, or why the old ones stay.
	Fetched func(s Source, err error)
}

// Verifier checks tokens. It is safe for concurrent use; a token that it has seen
// costs neither a signature check nor an allocation nor a lock.
type Verifier struct {
	cfg    Config
	rings  []*ring // by issuer
	parser *jwt.Parser
	cache  cache
}

// New returns a Verifier of one secret for HS256, for tokens of whatever issuer
// that need not expire. With an empty secret every token is invalid: an empty key
// would let anybody sign.
func New(secret []byte) *Verifier {
	return NewVerifier(Config{Issuers: []Issuer{{NoExpiry: true, Source: Source{Secret: string(secret)}}}}, nil)
}

// NewVerifier returns a Verifier that keeps what the old one, which may be nil, knows
// of keys of the same sources. It fetches nothing: Run does.
func NewVerifier(cfg Config, old *Verifier) *Verifier {
	switch {
	case cfg.Leeway == 0:
		cfg.Leeway = Leeway
	case cfg.Leeway < 0:
		cfg.Leeway = 0
	}
	v := &Verifier{cfg: cfg, cache: newCache()}
	known := map[Source]*ring{}
	if old != nil {
		for i, r := range old.rings {
			known[old.cfg.Issuers[i].Source] = r
		}
	}
	var methods []string
	for _, is := range cfg.Issuers {
		r := known[is.Source]
		if r == nil {
			r = newRing(is.Source, cfg.Hooks.Fetched)
			known[is.Source] = r
		}
		v.rings = append(v.rings, r)
		methods = append(methods, is.algorithms()...)
	}
	v.parser = jwt.NewParser(
		// A token may not choose how it is checked (RFC 8725 section 3.1): what no
		// issuer signs by, "none" first of all, gets nowhere.
		jwt.WithValidMethods(methods),
		jwt.WithStrictDecoding(),
		jwt.WithoutClaimsValidation(), // each time, also of those seen before: see holds
	)
	return v
}

// Verify checks the value of an Authorization header (RFC 6750 section 2.1).
// The error is ErrMissing when there is no bearer token in it, and wraps
// ErrInvalid, with the reason, when there is one that does not hold at now.
func (v *Verifier) Verify(authorization string, now time.Time) (Claims, error) {
	token, ok := bearer(authorization)
	if !ok {
		return Claims{}, ErrMissing
	}
	seen := v.cache.get(token)
	if seen == nil {
		var err error
		if seen, err = v.check(token); err != nil {
			return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		v.cache.put(seen)
	}
	if err := v.holds(&seen.claims, now); err != nil {
		return Claims{}, err
	}
	return seen.claims, nil
}

// bearer takes the token out of a header's value. The scheme's case does not
// matter (RFC 9110 section 11.1).
func bearer(authorization string) (string, bool) {
	scheme, token, _ := strings.Cut(strings.Trim(authorization, " \t"), " ")
	token = strings.Trim(token, " \t")
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

// holds looks at the token's times, which is all that changes about one.
func (v *Verifier) holds(c *Claims, now time.Time) error {
	switch {
	case !c.Expires.IsZero() && now.After(c.Expires.Add(v.cfg.Leeway)):
		return fmt.Errorf("%w: %w at %s", ErrInvalid, ErrExpired, c.Expires.UTC().Format(time.RFC3339))
	case !c.notBefore.IsZero() && now.Before(c.notBefore.Add(-v.cfg.Leeway)):
		return fmt.Errorf("%w: it is not valid before %s", ErrInvalid, c.notBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// issuer finds whom a token says it is of. No signature has been checked.
func (v *Verifier) issuer(name string) (*Issuer, *ring) {
	at := slices.IndexFunc(v.cfg.Issuers, func(is Issuer) bool { return is.Name == name && name != "" })
	if at < 0 {
		at = slices.IndexFunc(v.cfg.Issuers, func(is Issuer) bool { return is.Name == "" })
	}
	if at < 0 {
		return nil, nil
	}
	return &v.cfg.Issuers[at], v.rings[at]
}

// algorithms are those that the issuer may sign by.
func (is *Issuer) algorithms() []string {
	if !is.Source.isPublic() {
		return []string{"HS256"}
	}
	if len(is.Algorithms) == 0 {
		return []string{"RS256", "ES256", "EdDSA"}
	}
	return is.Algorithms
}
