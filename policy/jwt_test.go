package policy

import (
	"strings"
	"testing"
)

func TestIssuersThatAreRefused(t *testing.T) {
	for patch, want := range map[string]string{
		`{"issuers": [{"jwks_file": "/k"}]}`:                                                    "issuers[0].issuer: is missing",
		`{"issuers": [{"issuer": "a"}]}`:                                                        "needs one of",
		`{"issuers": [{"issuer": "a", "jwks_file": "/k", "secret_env": "S"}]}`:                  "has 2",
		`{"issuers": [{"issuer": "a", "jwks_file": "/k"}, {"issuer": "a", "jwks_file": "/k"}]}`: "twice",
		`{"issuers": [{"issuer": "a", "jwks_file": "k"}]}`:                                      "does not start with /",
		`{"issuers": [{"issuer": "a", "jwks_url": "file:///etc/shadow"}]}`:                      "jwks_url: is not",
		`{"issuers": [{"issuer": "a", "jwks_url": "https://u:p@a/"}]}`:                          "jwks_url: is not",
		`{"issuers": [{"issuer": "a", "secret_env": "A=B"}]}`:                                   "not the name of a variable",
		`{"issuers": [{"issuer": "a", "jwks_file": "/k", "algorithms": ["HS256"]}]}`:            `"HS256" is not RS256, ES256, EdDSA`,
		`{"issuers": [{"issuer": "a", "jwks_file": "/k", "algorithms": ["none"]}]}`:             `"none" is not`,
		`{"issuers": [{"issuer": "a", "secret_file": "/k", "algorithms": ["RS256"]}]}`:          `"RS256" is not HS256`,
		`{"issuers": [{"issuer": "a", "jwks_file": "/k", "audiences": [""]}]}`:                  "audiences[0]: is empty",
		`{"issuers": [{"issuer": "a", "jwks_url": "https://a/", "refresh": 1}]}`:                "refresh",
		`{"issuers": [{"issuer": "a", "secret": "hush"}]}`:                                      "secret",
		`{"leeway": 601}`: "leeway: 601 s is not in 0..600",
	} {
		_, err := DefaultSettings().Merge([]byte(`{"security": {"jwt": ` + patch + `}}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", patch, err, want)
		}
	}
}

func TestIssuersThatAreTaken(t *testing.T) {
	s, err := DefaultSettings().Merge([]byte(`{"security": {"jwt": {"leeway": 5, "issuers": [
		{"issuer": "https://login.example", "audiences": ["shop"], "algorithms": ["RS256", "EdDSA"], "jwks_url": "https://login.example/keys", "refresh": 60},
		{"issuer": "batch", "secret_env": "BATCH_SECRET", "allow_no_expiry": true}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Security.JWT; got.Leeway != 5 || len(got.Issuers) != 2 || !got.Issuers[1].AllowNoExpiry {
		t.Errorf("%+v", got)
	}
}
