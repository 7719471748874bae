package identity

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func resumed(t *testing.T, server, client *tls.Config) (bool, error) {
	t.Helper()
	for n := 0; ; n++ {
		cs, _, serverErr, clientErr := handshake(t, server, client)
		if serverErr != nil || clientErr != nil {
			return false, clientErr
		}
		if n == 1 {
			return cs.DidResume, nil
		}
	}
}

func TestSessionsAreResumedAndTheIdentityKept(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	server := b.ServerTLS()
	if ok, err := resumed(t, server, a.ClientTLS(store)); !ok || err != nil {
		t.Fatal("not resumed", err)
	}
	cs, cc, _, _ := handshake(t, server, a.ClientTLS(store))
	if name, err := b.Peer(cs); !cs.DidResume || name != web || err != nil {
		t.Error("server sees", name, err, cs.DidResume)
	}
	if name, err := a.Peer(cc); name != store || err != nil {
		t.Error("client sees", name, err)
	}
}

func TestAResumedSessionIsCheckedAgain(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	server := b.ServerTLS()
	if ok, err := resumed(t, server, a.ClientTLS(store)); !ok || err != nil {
		t.Fatal("not resumed", err)
	}
	// A ticket of one service, offered where another is expected.
	mixed := a.ClientTLS(policy.ServiceName{Namespace: "shop", Name: "bank"}).Clone()
	mixed.ClientSessionCache = a.ClientTLS(store).ClientSessionCache
	_, cc, _, err := handshake(t, server, mixed)
	if err == nil || !cc.DidResume {
		t.Errorf("resumed %v with the wrong service: %v", cc.DidResume, err)
	}
}

func TestEachEndpointHasItsOwnSession(t *testing.T) {
	ca := newAuthority(t)
	a := workload(t, ca, web)
	one, two := workload(t, ca, store).ServerTLS(), workload(t, ca, store).ServerTLS()
	to1, to2 := a.ClientTLSAt(store, "10.0.0.1:80"), a.ClientTLSAt(store, "10.0.0.2:80")
	for n := range 3 {
		for _, pair := range [][2]*tls.Config{{one, to1}, {two, to2}} {
			cs, _, serverErr, clientErr := handshake(t, pair[0], pair[1])
			if serverErr != nil || clientErr != nil || cs.DidResume != (n > 0) {
				t.Fatalf("round %d: resumed %v, %v %v", n, cs.DidResume, serverErr, clientErr)
			}
		}
	}
}

func TestRootsRotateWithoutALostConnection(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	a, b := workload(t, old, web), workload(t, old, store)
	server := b.ServerTLS()
	if ok, err := resumed(t, server, a.ClientTLS(store)); !ok || err != nil {
		t.Fatal("not resumed", err)
	}
	now := time.Now()
	step := func(what string, wantResumed bool) {
		t.Helper()
		cs, _, serverErr, clientErr := handshake(t, server, a.ClientTLS(store))
		if serverErr != nil || clientErr != nil {
			t.Fatal(what, serverErr, clientErr)
		}
		if cs.DidResume != wantResumed {
			t.Errorf("%s: resumed %v", what, cs.DidResume)
		}
	}
	both := append(old.pem(), next.pem()...)
	for _, i := range []*Identity{a, b} {
		if err := i.SetBundle(both); err != nil {
			t.Fatal(err)
		}
	}
	step("overlap", false) // sessions are of one bundle
	for i, name := range map[*Identity]policy.ServiceName{a: web, b: store} {
		h := mustHeld(t, next, name, now.Add(-time.Minute), now.Add(time.Hour))
		h.trust = i.now.Load().trust
		i.now.Store(h)
	}
	step("new certificates", true)
	for _, i := range []*Identity{a, b} {
		if err := i.SetBundle(next.pem()); err != nil {
			t.Fatal(err)
		}
	}
	step("the old root is gone", false)
	step("and resumed again", true)
}

func TestARemovedRootIsRefusedAlsoInResumedSessions(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	a, b := workload(t, old, web), workload(t, old, store)
	server := b.ServerTLS()
	if ok, err := resumed(t, server, a.ClientTLS(store)); !ok || err != nil {
		t.Fatal("not resumed", err)
	}
	if err := b.SetBundle(next.pem()); err != nil {
		t.Fatal(err)
	}
	if _, _, err, _ := handshake(t, server, a.ClientTLS(store)); err == nil {
		t.Error("the server accepts a ticket of a root that is gone")
	}
	if err := a.SetBundle(next.pem()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := handshake(t, workload(t, old, store).ServerTLS(), a.ClientTLS(store)); err == nil {
		t.Error("the client accepts a root that is gone")
	}
	if len(b.wake) != 1 {
		t.Error("our own certificate does not stand any more, and is not renewed")
	}
}

func TestSessionsEndWithTheCertificate(t *testing.T) {
	ca := newAuthority(t)
	var c clock
	at := func(cfg *Config) { cfg.Now = c.now }
	a, b := workload(t, ca, web, at), workload(t, ca, store, at)
	server := b.ServerTLS()
	if ok, err := resumed(t, server, a.ClientTLS(store)); !ok || err != nil {
		t.Fatal("not resumed", err)
	}
	c.move(25 * time.Hour)
	if _, _, serverErr, clientErr := handshake(t, server, a.ClientTLS(store)); serverErr == nil || clientErr == nil {
		t.Error("expired certificates accepted:", serverErr, clientErr)
	}
	for i, name := range map[*Identity]policy.ServiceName{a: web, b: store} {
		i.now.Store(mustHeld(t, ca, name, c.now().Add(-time.Minute), c.now().Add(time.Hour)))
	}
	if ok, err := resumed(t, server, a.ClientTLS(store)); !ok || err != nil {
		t.Error("after renewal:", err)
	}
}
