package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// records are Tokens in memory.
type records struct {
	mu     sync.Mutex
	tokens map[string]*policy.JoinToken
	by     map[string]bool
	broken error
}

func (r *records) AddToken(_ context.Context, t policy.JoinToken) error {
	r.tokens[t.ID] = &t
	return r.broken
}

func (r *records) UseToken(_ context.Context, id, by string) (policy.JoinToken, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tokens[id]
	switch {
	case r.broken != nil:
		return policy.JoinToken{}, false, r.broken
	case t == nil:
		return policy.JoinToken{}, false, policy.ErrNotFound
	case !t.Revoked.IsZero() || !r.by[by] && t.Uses > 0 && t.Used >= t.Uses:
		return *t, false, nil
	case !r.by[by]:
		t.Used++
		r.by[by] = true
	}
	return *t, true, nil
}

// TestRecordsDecideOverATokenThatIsOurs: used up, revoked, without a record, for
// another service; each is refused, logged with its reason and counted.
func TestRecordsDecideOverATokenThatIsOurs(t *testing.T) {
	kept := &records{tokens: map[string]*policy.JoinToken{}, by: map[string]bool{}}
	core, logged := observer.New(zap.DebugLevel)
	a, at := newAuthority(t, func(c *Config) { c.Tokens, c.Log = kept, zap.New(core) })
	addr := serve(t, a, credentials.NewTLS(a.ServerTLS()))
	anonymous := client(t, addr, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, ServerName: "control.weir-system", RootCAs: a.pool(), Time: at.Now}))
	create := func(uses int) (policy.JoinToken, string) {
		made, text, err := a.CreateToken(t.Context(), cart, time.Hour, uses)
		must(t, err)
		if strings.Contains(fmt.Sprint(made), text) {
			t.Errorf("the record %+v holds the token", made)
		}
		return made, text
	}
	join := func(token string, csr []byte, want codes.Code, says string) {
		t.Helper()
		_, err := anonymous.Join(t.Context(), &wire.JoinRequest{Token: token, Csr: csr})
		if status.Code(err) != want || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %v with %q", err, want, says)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	first := newCSR(t, emptyCSR, key)
	one, text := create(1)
	join(text, []byte("x"), codes.InvalidArgument, "request") // and is not counted
	join(text, first, codes.OK, "")
	join(text, first, codes.OK, "") // its answer was lost
	join(text, newCSR(t, emptyCSR, nil), codes.Unauthenticated, "used up by 1 of 1 ("+one.ID+")")
	// Who has joined and shows it needs no use.
	member := client(t, addr, credentials.NewTLS(workload(t, a, cart)))
	if _, err := member.Join(t.Context(), &wire.JoinRequest{Token: text, Csr: newCSR(t, emptyCSR, nil)}); err != nil {
		t.Errorf("with a certificate that holds: %v", err)
	}
	if kept.tokens[one.ID].Used != 1 {
		t.Errorf("counted are %d uses", kept.tokens[one.ID].Used)
	}
	any, text := create(0)
	for range 3 {
		join(text, newCSR(t, emptyCSR, nil), codes.OK, "")
	}
	kept.tokens[any.ID].Revoked = at.Now()
	join(text, newCSR(t, emptyCSR, nil), codes.Unauthenticated, "revoked at ")
	delete(kept.tokens, any.ID)
	join(text, newCSR(t, emptyCSR, nil), codes.Unauthenticated, "no record")
	kept.broken = errors.New("the store is away")
	join(text, newCSR(t, emptyCSR, nil), codes.Internal, "log tells why")
	want := map[string]uint64{"request": 1, "token-used-up": 1, "token-revoked": 1, "token-unknown": 1}
	if got := a.Refused(); !maps.Equal(got, want) {
		t.Errorf("counted are %v, want %v", got, want)
	}
	if n := logged.FilterMessage("a certificate was refused").Len(); n != 4 {
		t.Errorf("%d refusals are logged", n)
	}
	if _, _, err := a.CreateToken(t.Context(), cart, 0, policy.MaxTokenUses+1); err == nil {
		t.Error("a token for too many was made")
	}
	if _, _, err := a.CreateToken(t.Context(), cart, 0, 1); err == nil {
		t.Error("a token was made that nothing is known of")
	}
}

// TestATokenOfKubernetesIsOnlyTakenWhereItIsAskedFor: without --kubernetes-join it
// opens nothing, and with it what the check says.
func TestATokenOfKubernetesIsOnlyTakenWhereItIsAskedFor(t *testing.T) {
	for _, c := range []struct {
		name    string
		account func(context.Context, string, policy.ServiceName) error
		service string
		want    codes.Code
	}{
		{"not asked for", nil, "cart", codes.Unauthenticated},
		{"taken", func(context.Context, string, policy.ServiceName) error { return nil }, "cart", codes.OK},
		{"refused", func(context.Context, string, policy.ServiceName) error { return ErrKubernetes }, "cart", codes.Unauthenticated},
		{"cannot be asked", func(context.Context, string, policy.ServiceName) error { return errors.New("no answer") }, "cart", codes.Internal},
		{"no service", func(context.Context, string, policy.ServiceName) error { return nil }, "", codes.PermissionDenied},
	} {
		a, _ := newAuthority(t, func(cfg *Config) { cfg.Account = c.account })
		_, err := a.JoinServer().Join(t.Context(), &wire.JoinRequest{KubernetesToken: "k", Service: &wire.Name{Namespace: "shop", Name: c.service}, Csr: newCSR(t, emptyCSR, nil)})
		if status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
