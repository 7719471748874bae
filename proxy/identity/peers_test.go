package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// unresumed is a client that makes full handshakes only.
func unresumed(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.ClientSessionCache = nil
	return cfg
}

func mustShake(t testing.TB, server, client *tls.Config) (cs, cc tls.ConnectionState) {
	t.Helper()
	cs, cc, serverErr, clientErr := handshake(t, server, client)
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	return cs, cc
}

func TestAKnownPeerIsRefusedOnceItsCertificateHasEnded(t *testing.T) {
	ca := newAuthority(t)
	var c clock
	at := func(cfg *Config) { cfg.Now = c.now }
	a, b := workload(t, ca, web, at), workload(t, ca, store, at)
	server, client := b.ServerTLS(), unresumed(a.ClientTLS(store))
	mustShake(t, server, client)
	mustShake(t, server, client)
	b.now.Load().cert = mustHeld(t, ca, store, c.now(), c.now().Add(100*time.Hour)).cert // only the client's ends
	c.move(25 * time.Hour)
	if _, _, err, _ := handshake(t, server, client); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Error("the server takes an expired certificate that it knew:", err)
	}
	c.move(-26 * time.Hour)
	if _, _, err, _ := handshake(t, server, client); err == nil {
		t.Error("the server takes a certificate that is not valid yet, because it knew it")
	}
}

func TestAKnownPeerIsRefusedUnderOtherRoots(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	a, b := workload(t, old, web), workload(t, old, store)
	server, client := b.ServerTLS(), unresumed(a.ClientTLS(store))
	mustShake(t, server, client)
	mustShake(t, server, client)
	if err := b.SetBundle(next.pem()); err != nil {
		t.Fatal(err)
	}
	if _, _, err, _ := handshake(t, server, client); err == nil {
		t.Error("the server takes a peer whose root is gone, because it knew it")
	}
	if err := b.SetBundle(append(old.pem(), next.pem()...)); err != nil {
		t.Fatal(err)
	}
	mustShake(t, server, client)
	if err := a.SetBundle(next.pem()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := handshake(t, server, client); err == nil {
		t.Error("the client takes a server whose root is gone, because it knew it")
	}
}

func TestAKnownPeerDoesNotPassForAnother(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	mustShake(t, b.ServerTLS(), unresumed(a.ClientTLS(store)))
	_, _, _, err := handshake(t, b.ServerTLS(), unresumed(a.ClientTLS(policy.ServiceName{Namespace: "shop", Name: "bank"})))
	if err == nil || !strings.Contains(err.Error(), "shop/store, not shop/bank") {
		t.Error(err)
	}
	// To know somebody's certificate is not to have the key.
	thief := a.now.Load().cert
	key, err := makeKey()
	if err != nil {
		t.Fatal(err)
	}
	thief.PrivateKey = key
	server := b.ServerTLS()
	mustShake(t, server, unresumed(a.ClientTLS(store)))
	stolen := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPN}, Certificates: []tls.Certificate{thief}}
	if _, _, err, _ := handshake(t, server, stolen); err == nil {
		t.Error("a known certificate passed without its key")
	}
}

func TestAPeerIsKnownForOneUseOnly(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	key := newKey(t)
	leaf := []*x509.Certificate{ca.leaf(t, web, &key.PublicKey, now.Add(-time.Minute), now.Add(time.Hour), func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})}
	tr := trustIn([]*x509.Certificate{ca.cert}, mustDomain(domain))
	for range 2 {
		if _, err := tr.verify(leaf, x509.ExtKeyUsageClientAuth, now); err != nil {
			t.Error(err)
		}
		if _, err := tr.verify(leaf, x509.ExtKeyUsageServerAuth, now); err == nil {
			t.Error("a certificate for clients passed for a server's")
		}
	}
}

func TestARefusedCertificateIsNotRemembered(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	tr := trustIn([]*x509.Certificate{ca.cert}, mustDomain(domain))
	key := newKey(t)
	for range 2 {
		if _, err := tr.verify([]*x509.Certificate{other.leaf(t, web, &key.PublicKey, now, now.Add(time.Hour))}, x509.ExtKeyUsageClientAuth, now); err == nil {
			t.Error("accepted")
		}
	}
	if n := len(tr.seen.young) + len(tr.seen.old); n != 0 {
		t.Error("strangers remembered:", n)
	}
}

func TestAChainEndsWithItsFirstCertificateToEnd(t *testing.T) {
	from, until := time.Unix(1000, 0), time.Unix(2000, 0)
	p := newKnown([]*x509.Certificate{
		{NotBefore: from, NotAfter: until}, {NotBefore: from.Add(time.Second), NotAfter: until.Add(-time.Second)}, {NotAfter: until},
	}, web)
	for at, want := range map[int64]bool{1000: false, 1001: true, 1999: true, 2000: false} {
		if p.validAt(time.Unix(at, 0)) != want {
			t.Error("at", at, "not", want)
		}
	}
}

func TestPeersAreBoundedAndTheUsedOnesStay(t *testing.T) {
	var p peers
	key := func(n int) (k peerKey) { binary.BigEndian.PutUint32(k.leaf[:], uint32(n)); return }
	now := time.Now()
	add := func(n int) {
		p.put(key(n), &known{from: now, until: now, name: policy.ServiceName{Name: fmt.Sprint(n)}})
	}
	for n := range 3 * maxPeers {
		add(n)
		if p.get(key(0), now) == nil {
			t.Fatal("who is asked for each time is forgotten at", n)
		}
		if len(p.young)+len(p.old) > maxPeers {
			t.Fatal("unbounded:", len(p.young)+len(p.old))
		}
	}
	if p.get(key(1), now) != nil {
		t.Error("nobody is forgotten")
	}
	if got := p.get(key(3*maxPeers-1), now); got == nil || got.name.Name != fmt.Sprint(3*maxPeers-1) {
		t.Error("the last one is", got)
	}
}

func TestConnectionsFromOnePeerShareItsCertificate(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	server, client := b.ServerTLS(), unresumed(a.ClientTLS(store))
	first, _ := mustShake(t, server, client)
	second, _ := mustShake(t, server, client)
	if second.DidResume || first.PeerCertificates[0] != second.PeerCertificates[0] {
		t.Error("each connection keeps a certificate of its own")
	}
	name, err := b.Peer(second)
	if name != web || err != nil {
		t.Error(name, err)
	}
}

// The roots turn while workloads connect to each other: every connection is
// made, and to whom it should be.
func TestManyConnectAtOnceWhileRootsTurn(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	b := workload(t, ca, store)
	server := b.ServerTLS()
	l := listen(t)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer raw.Close()
				s := tls.Server(raw, server)
				if err := exchange(s); err != nil {
					t.Error("server:", err)
				} else if name, err := b.Peer(s.ConnectionState()); err != nil || name.Namespace != "shop" {
					t.Error(name, err)
				}
			})
		}
	})
	bundles := [][]byte{ca.pem(), append(ca.pem(), other.pem()...)}
	var callers sync.WaitGroup
	for n := range 4 {
		a := workload(t, ca, policy.ServiceName{Namespace: "shop", Name: fmt.Sprint("web", n)})
		callers.Go(func() {
			for k := range 25 {
				raw, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				if err := exchange(tls.Client(raw, a.ClientTLS(store))); err != nil {
					t.Error("client:", err)
				}
				raw.Close()
				if err := b.SetBundle(bundles[k/5%2]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	l.Close()
	served.Wait()
}
