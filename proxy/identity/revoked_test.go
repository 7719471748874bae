package identity

import (
	"errors"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func TestWhoIsRevokedIsRefusedInResumedSessionsToo(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	certA, _ := a.Certificate()
	certB, _ := b.Certificate()
	for name, c := range map[string]struct {
		at      *Identity // who hears of it
		revoked policy.Revocation
	}{
		"a client's identity":    {b, policy.Revocation{Identity: web}},
		"a client's certificate": {b, policy.Revocation{Serial: certA.Serial}},
		"a server's identity":    {a, policy.Revocation{Identity: store}},
		"a server's certificate": {a, policy.Revocation{Serial: certB.Serial}},
	} {
		server, client := b.ServerTLS(), a.ClientTLSAt(store, name)
		if ok, err := resumed(t, server, client); !ok || err != nil {
			t.Fatal("not resumed", err)
		}
		cs, cc, _, _ := handshake(t, server, client)
		c.at.SetRevoked([]policy.Revocation{c.revoked})
		_, _, serverErr, clientErr := handshake(t, server, client) // which has a ticket
		if !errors.Is(errors.Join(serverErr, clientErr), ErrRevoked) {
			t.Errorf("%s: resumed: %v, %v", name, serverErr, clientErr)
		}
		_, _, serverErr, clientErr = handshake(t, b.ServerTLS(), a.ClientTLSAt(store, name+" in full"))
		if !errors.Is(errors.Join(serverErr, clientErr), ErrRevoked) {
			t.Errorf("%s: in full: %v, %v", name, serverErr, clientErr)
		}
		state := cc
		if c.at == b {
			state = cs
		}
		if err := c.at.Revoked(state); !errors.Is(err, ErrRevoked) {
			t.Errorf("%s: a connection that is there: %v", name, err)
		}
		c.at.SetRevoked([]policy.Revocation{{Serial: "1"}, {Identity: policy.ServiceName{Namespace: "shop", Name: "bank"}}})
		if _, _, serverErr, clientErr := handshake(t, server, client); serverErr != nil || clientErr != nil || c.at.Revoked(state) != nil {
			t.Errorf("%s: others are revoked: %v, %v", name, serverErr, clientErr)
		}
		c.at.SetRevoked(nil)
	}
}

func TestACertificateUnderAnotherRootThanTheOneThatSignsIsRenewedSoon(t *testing.T) {
	ca := newAuthority(t)
	a := workload(t, ca, web)
	own, ok := a.Certificate()
	if !ok || own.Root != own.Trusted[0] || own.Root == "" {
		t.Fatalf("%+v", own)
	}
	a.SignedUnder(own.Root, 0)
	a.SignedUnder("", 0)
	select {
	case <-a.wake:
		t.Fatal("woken for its own root")
	case <-time.After(20 * time.Millisecond): // nothing is to happen
	}
	a.SignedUnder("another", 0)
	select {
	case <-a.wake:
	case <-time.After(30 * time.Second):
		t.Fatal("not woken")
	}
	if !a.strays(a.now.Load()) {
		t.Error("a certificate under the old root is taken for good")
	}
}
