package policy

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// JWTSettings say whose tokens are taken, besides those signed with
// security.jwt_secret.
type JWTSettings struct {
	Leeway  float64     `json:"leeway"` // seconds by which clocks may differ
	Issuers []JWTIssuer `json:"issuers"`
}

// JWTIssuer is whom to believe, and where the proxies find its keys: just one of
// JWKSURL, JWKSFile, SecretFile and SecretEnv. Files and variables are the
// proxies' own: no secret passes through the API.
type JWTIssuer struct {
	Issuer     string   `json:"issuer"`               // what "iss" must be
	Audiences  []string `json:"audiences,omitempty"`  // "aud" must hold one of them; none is any
	Algorithms []string `json:"algorithms,omitempty"` // of RS256, ES256 and EdDSA; none is all. HS256 with a secret
	JWKSURL    string   `json:"jwks_url,omitempty"`
	JWKSFile   string   `json:"jwks_file,omitempty"`
	SecretFile string   `json:"secret_file,omitempty"`
	SecretEnv  string   `json:"secret_env,omitempty"`
	// AllowNoExpiry takes tokens without "exp", which hold for ever.
	AllowNoExpiry bool    `json:"allow_no_expiry,omitempty"`
	Refresh       float64 `json:"refresh,omitempty"` // seconds between two fetches of JWKSURL; 0 is 300
}

// DefaultLeeway is by how many seconds clocks may differ where nothing else is set.
const DefaultLeeway = 30

const (
	maxIssuers    = 32
	maxIssuerText = 500
)

func (s *JWTSettings) validate() Problems {
	var p Problems
	if s.Leeway < 0 || s.Leeway > 600 {
		p.add("leeway", "%v s is not in 0..600", s.Leeway)
	}
	if len(s.Issuers) > maxIssuers {
		p.add("issuers", "%d are more than %d", len(s.Issuers), maxIssuers)
	}
	names := map[string]bool{}
	for i := range s.Issuers {
		is := &s.Issuers[i]
		q := is.validate()
		if names[is.Issuer] {
			q.add("issuer", "%q is there twice", is.Issuer)
		}
		names[is.Issuer] = true
		p = append(p, q.Under("issuers["+strconv.Itoa(i)+"]")...)
	}
	return p
}

func (is *JWTIssuer) validate() Problems {
	var p Problems
	if is.Issuer == "" {
		p.add("issuer", "is missing: it is what the token's iss must be")
	}
	given := 0
	for _, f := range []struct{ path, value string }{
		{"issuer", is.Issuer}, {"jwks_url", is.JWKSURL}, {"jwks_file", is.JWKSFile}, {"secret_file", is.SecretFile}, {"secret_env", is.SecretEnv},
	} {
		if f.path != "issuer" && f.value != "" {
			given++
		}
		if len(f.value) > maxIssuerText || hasControl(f.value) {
			p.add(f.path, "is longer than %d bytes or holds a control character", maxIssuerText)
		}
	}
	if given != 1 {
		p.add("", "needs one of jwks_url, jwks_file, secret_file and secret_env, and has %d", given)
	}
	if is.JWKSURL != "" {
		u, err := url.Parse(is.JWKSURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			p.add("jwks_url", "is not an http:// or https:// URL without user and password")
		}
	}
	for _, f := range []struct{ path, value string }{{"jwks_file", is.JWKSFile}, {"secret_file", is.SecretFile}} {
		if f.value != "" && !strings.HasPrefix(f.value, "/") {
			p.add(f.path, "%q does not start with /", f.value)
		}
	}
	if is.SecretEnv != "" && strings.Trim(is.SecretEnv, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		p.add("secret_env", "%q is not the name of a variable", is.SecretEnv)
	}
	p = append(p, is.validateAlgorithms()...)
	for i, a := range is.Audiences {
		if a == "" || len(a) > maxIssuerText {
			p.add("audiences["+strconv.Itoa(i)+"]", "is empty or longer than %d bytes", maxIssuerText)
		}
	}
	if is.Refresh != 0 {
		p.secondsIn("refresh", is.Refresh, 5)
	}
	return p
}

// validateAlgorithms keeps secrets and public keys apart: a public key taken for a
// secret would let anybody sign.
func (is *JWTIssuer) validateAlgorithms() Problems {
	var p Problems
	known := []string{"RS256", "ES256", "EdDSA"}
	if cmp.Or(is.SecretFile, is.SecretEnv) != "" {
		known = []string{"HS256"}
	}
	for i, a := range is.Algorithms {
		if !slices.Contains(known, a) {
			p.add("algorithms["+strconv.Itoa(i)+"]", "%q is not %s", a, strings.Join(known, ", "))
		}
	}
	return p
}
