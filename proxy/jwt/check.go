package jwt

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// check verifies a token that was not seen before, all but its times.
func (v *Verifier) check(token string) (*checked, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("%d bytes are more than %d", len(token), maxToken)
	}
	if err := unambiguous(token); err != nil {
		return nil, err
	}
	// The library's texts may hold parts of the token; it must not get into the log
	// by way of the memory that the request's head is in.
	token = strings.Clone(token)
	out := &checked{token: token}
	all := jwt.MapClaims{}
	var is *Issuer
	_, err := v.parser.ParseWithClaims(token, all, func(t *jwt.Token) (any, error) {
		// Extensions that we do not know must not be ignored (RFC 7515 section
		// 4.1.11). Where a key may be found (jku, x5u, jwk, x5c) we do not look: a
		// token may not bring its own.
		if _, ok := t.Header["crit"]; ok {
			return nil, errors.New("its header has critical extensions")
		}
		name, err := all.GetIssuer()
		if err != nil {
			return nil, err
		}
		if is, out.ring = v.issuer(name); is == nil {
			return nil, fmt.Errorf("its issuer %.60q is none of ours", name)
		}
		if !slices.Contains(is.algorithms(), t.Method.Alg()) {
			return nil, fmt.Errorf("its issuer does not sign by %s", t.Method.Alg())
		}
		out.keys = out.ring.keys.Load()
		return out.keys.verifiers(t, out.ring)
	})
	if err != nil {
		return nil, err
	}
	if out.claims, err = claims(all); err != nil {
		return nil, err
	}
	if err := is.accepts(&out.claims); err != nil {
		return nil, err
	}
	return out, nil
}

// accepts looks at what does not change while a token holds.
func (is *Issuer) accepts(c *Claims) error {
	if c.Expires.IsZero() && !is.NoExpiry {
		return errors.New("it has no exp, and would hold for ever")
	}
	if len(is.Audiences) > 0 && !slices.ContainsFunc(c.Audience, func(a string) bool { return slices.Contains(is.Audiences, a) }) {
		return fmt.Errorf("it is for %.200q, not for us", c.Audience)
	}
	return nil
}

func claims(all jwt.MapClaims) (c Claims, err error) {
	c.All = all
	var errs [5]error
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
	begins, err := all.GetNotBefore()
	if begins != nil {
		c.notBefore = begins.Time
	}
	errs[4] = err
	if err := errors.Join(errs[:]...); err != nil {
		return Claims{}, err
	}
	return c, nil
}

// unambiguous refuses a token whose header or claims name a member twice: who
// reads the first and who reads the last would see two tokens (RFC 7515 section
// 4, RFC 7519 section 4).
func unambiguous(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("it has %d parts instead of 3", len(parts))
	}
	for i, what := range []string{"header", "claims"} {
		text, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil {
			return fmt.Errorf("its %s: %w", what, err)
		}
		if err := eachOnce(text); err != nil {
			return fmt.Errorf("its %s: %w", what, err)
		}
	}
	return nil
}

// eachOnce walks a JSON text. What is not JSON is left to the parser.
func eachOnce(text []byte) error {
	type object struct {
		names map[string]bool // nil for a list
		value bool            // a name was read, its value is next
	}
	var open []object
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("is not JSON: %w", err)
		}
		in := len(open) - 1
		if name, ok := token.(string); ok && in >= 0 && open[in].names != nil && !open[in].value {
			if open[in].names[name] {
				return fmt.Errorf("%.60q is there twice", name)
			}
			open[in].names[name], open[in].value = true, true
			continue
		}
		switch token {
		case json.Delim('{'):
			open = append(open, object{names: map[string]bool{}})
			continue
		case json.Delim('['):
			open = append(open, object{})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:in]
		}
		if in = len(open) - 1; in >= 0 {
			open[in].value = false
		}
	}
}
