package proxy

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Rules that change while a request waits for the keys of its token decide about it.
func TestRulesThatChangeWhileKeysAreFetchedDecide(t *testing.T) {
	for _, denied := range []bool{false, true} {
		o := newPathIn(t)
		o.p.hard = t.Context()
		public, private, _ := ed25519.GenerateKey(nil)
		part := base64.RawURLEncoding.EncodeToString
		in := *o.p.guard.Load().Settings()
		in.Rules = []policy.InboundRule{{SecurityRule: policy.SecurityRule{
			ID: "token", SourceNamespace: "*", SourceService: "*", DestinationNamespace: "default", DestinationService: "front",
			AllowedMethods: []string{"*"}, RequiredJWT: true,
		}}}
		asked := make(chan struct{})
		keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-asked
			waits := make(chan struct{})
			o.l.Post(func() { close(waits) }) // which the loop comes to when the request waits
			<-waits
			if denied {
				none := in
				none.Rules = nil
				if err := o.p.setInbound(none); err != nil {
					t.Error(err)
				}
			}
			fmt.Fprintf(w, `{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA", "use": "sig", "x": %q}]}`, part(public))
		}))
		t.Cleanup(keys.Close)
		in.JWT = policy.JWTSettings{Leeway: 30, Issuers: []policy.JWTIssuer{{Issuer: "us", JWKSURL: keys.URL}}}
		if err := o.p.setInbound(in); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); o.p.guard.Load().tokens.Run(ctx) }()
		t.Cleanup(func() { stop(); <-ended })
		text := part([]byte(`{"alg":"EdDSA","kid":"k"}`)) + "." + part(fmt.Appendf(nil, `{"iss":"us","exp":%d}`, time.Now().Add(time.Hour).Unix()))
		token := text + "." + part(ed25519.Sign(private, []byte(text)))

		o.client.says = []byte("GET / HTTP/1.1\r\nHost: users\r\nAuthorization: Bearer " + token + "\r\n\r\n")
		client := &spy{script: o.client}
		o.on(func() {
			o.client.left, o.up.left = 1, 1
			close(asked)
			o.p.h1.Serve(client, nil, func() bool { return false }, o.serve, func(error) {})
		})
		want := "HTTP/1.1 200"
		if denied {
			want = "HTTP/1.1 403"
		}
		if got := client.wrote.String(); !strings.HasPrefix(got, want) {
			t.Errorf("denied meanwhile %v: %.100q", denied, got)
		}
	}
}
