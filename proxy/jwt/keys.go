package jwt

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

const (
	maxKeys   = 100
	minRSABit = 2048 // RFC 7518 section 3.3
	maxRSABit = 8192 // a check by a larger one is slow
)

// keySet are an issuer's keys at one time. It is immutable.
type keySet struct {
	text   []byte // what it was made of
	secret []byte
	public []key
}

// key is a public key, and the one algorithm that it is for.
type key struct {
	id     string
	alg    string
	public crypto.PublicKey
}

// parseKeys reads a JWK set (RFC 7517 section 5). Keys of a kind that nothing here
// is signed by are passed over, secret ones above all: a set is public. A set
// without any other is refused.
func parseKeys(text []byte) (*keySet, error) {
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("not a JWK set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys are more than %d", len(set.Keys), maxKeys)
	}
	out := &keySet{text: text}
	var last error
	for i, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil {
			last = fmt.Errorf("keys[%d]: %w", i, err)
			continue
		}
		alg, err := algorithmOf(&k)
		if err != nil {
			last = fmt.Errorf("keys[%d]: %w", i, err)
			continue
		}
		out.public = append(out.public, key{k.KeyID, alg, k.Key})
	}
	if len(out.public) == 0 {
		return nil, errors.Join(errors.New("the JWK set has no key that can be used"), last)
	}
	return out, nil
}

// algorithmOf tells what a key is for. Each kind of key is for one algorithm, so
// that none can be taken for another's.
func algorithmOf(k *jose.JSONWebKey) (string, error) {
	if k.Use != "" && k.Use != "sig" {
		return "", fmt.Errorf("use %.20q is not sig", k.Use)
	}
	var alg string
	switch public := k.Key.(type) {
	case *rsa.PublicKey:
		if n := public.N.BitLen(); n < minRSABit || n > maxRSABit {
			return "", fmt.Errorf("an RSA key of %d bits is not of %d..%d", n, minRSABit, maxRSABit)
		}
		alg = "RS256"
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return "", errors.New("the curve is not P-256")
		}
		alg = "ES256"
	case ed25519.PublicKey:
		alg = "EdDSA"
	default:
		return "", fmt.Errorf("a key of type %T is no public key that we verify by", k.Key)
	}
	if k.Algorithm != "" && k.Algorithm != alg && !(alg == "EdDSA" && k.Algorithm == "Ed25519") {
		return "", fmt.Errorf("alg %.20q is not %s", k.Algorithm, alg)
	}
	return alg, nil
}

// parseSecret takes a secret as a file or a variable has it: without the newline
// that editors put at its end.
func parseSecret(text []byte) (*keySet, error) {
	secret := bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(secret) == 0 {
		return nil, errors.New("the secret is empty")
	}
	return &keySet{text: text, secret: bytes.Clone(secret)}, nil
}

// verifiers gives the keys that a token may be signed by: the one that it names, or
// where it names none all of its algorithm.
func (s *keySet) verifiers(t *jwt.Token, of *ring) (any, error) {
	alg := t.Method.Alg()
	if alg == "HS256" {
		if s == nil || len(s.secret) == 0 {
			return nil, &UnknownKeyError{"no secret is set to verify it with", of}
		}
		return s.secret, nil
	}
	// A kid is compared, and is never part of a path, a query or a URL.
	id, named := t.Header["kid"].(string)
	if _, there := t.Header["kid"]; there && !named {
		return nil, errors.New("its kid is no string")
	}
	var fit jwt.VerificationKeySet
	if s != nil {
		for _, k := range s.public {
			if k.alg == alg && (!named || k.id == id) {
				fit.Keys = append(fit.Keys, k.public)
			}
		}
	}
	if len(fit.Keys) == 0 {
		return nil, &UnknownKeyError{fmt.Sprintf("no key %.60q for %s is known", id, alg), of}
	}
	return fit, nil
}
