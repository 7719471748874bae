package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"
	"time"
)

// spy is a session cache that shows what is put into it.
type spy struct{ last *tls.ClientSessionState }

func (s *spy) Get(string) (*tls.ClientSessionState, bool) { return s.last, s.last != nil }
func (s *spy) Put(_ string, cs *tls.ClientSessionState)   { s.last = cs }

// ticketOf makes a connection, and gives its ticket and the cache that holds it.
func ticketOf(t testing.TB, server, client *tls.Config) ([]byte, *tls.Config) {
	t.Helper()
	s := &spy{}
	client = client.Clone()
	client.ClientSessionCache = s
	mustShake(t, server, client)
	ticket, _, err := s.last.ResumptionState()
	if err != nil || len(ticket) == 0 {
		t.Fatal(err)
	}
	return slices.Clone(ticket), client
}

func TestATicketIsSmallAndTellsNothing(t *testing.T) {
	ca := newAuthority(t)
	a, b := workload(t, ca, web), workload(t, ca, store)
	server := b.ServerTLS()
	first, client := ticketOf(t, server, a.ClientTLS(store))
	if len(first) > 160 {
		t.Error(len(first), "bytes")
	}
	if bytes.Contains(first, []byte("shop")) || bytes.Contains(first, a.now.Load().chain[0].Raw[:32]) {
		t.Error("it can be read by who sees it")
	}
	cs, _ := mustShake(t, server, client)
	if name, err := b.Peer(cs); !cs.DidResume || name != web || err != nil {
		t.Error(cs.DidResume, name, err)
	}
	if !bytes.Equal(cs.PeerCertificates[0].Raw, a.now.Load().chain[0].Raw) || len(cs.PeerCertificates) != 1 {
		t.Error("a resumed connection is of another certificate")
	}
}

func TestAChainOfSeveralCertificatesResumes(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	key, mid := newKey(t), newKey(t)
	tmpl := *ca.cert
	tmpl.PublicKey = nil
	tmpl.Subject.CommonName = "in between"
	tmpl.NotAfter = now.Add(time.Hour)
	between := &authority{sign(t, &tmpl, ca.cert, &mid.PublicKey, ca.key), mid}
	leaf := between.leaf(t, web, &key.PublicKey, now.Add(-time.Minute), now.Add(2*time.Hour))
	h, err := newHeld(encode(leaf, between.cert), ca.pem(), key, mustDomain(domain))
	if err != nil {
		t.Fatal(err)
	}
	var c clock
	a, b := workload(t, ca, web), workload(t, ca, store, func(cfg *Config) { cfg.Now = c.now })
	a.now.Store(h)
	server := b.ServerTLS()
	_, client := ticketOf(t, server, a.ClientTLS(store))
	if cs, _ := mustShake(t, server, client); !cs.DidResume || len(cs.PeerCertificates) != 2 {
		t.Error(cs.DidResume, len(cs.PeerCertificates))
	}
	// The leaf still holds, but not what vouches for it.
	c.move(time.Hour + time.Minute)
	if _, _, err, _ := handshake(t, server, client); err == nil {
		t.Error("resumed under an authority that has expired")
	}
}

func TestTicketsOfNoUseMakeFullHandshakes(t *testing.T) {
	ca := newAuthority(t)
	for name, spoil := range map[string]func(*tls.Config, *Identity, *clock) *tls.Config{
		"of another configuration": func(_ *tls.Config, b *Identity, _ *clock) *tls.Config { return b.ServerTLS() },
		"of a key that is too old": func(s *tls.Config, _ *Identity, c *clock) *tls.Config { c.move(2*ticketLife + time.Minute); return s },
		"of somebody forgotten": func(s *tls.Config, b *Identity, _ *clock) *tls.Config {
			seen := &b.now.Load().trust.seen
			seen.young, seen.old = nil, nil
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			a, b := workload(t, ca, web), workload(t, ca, store, func(cfg *Config) { cfg.Now = c.now })
			for _, i := range []*Identity{a, b} {
				i.now.Store(mustHeld(t, ca, i.cfg.Service, time.Now().Add(-time.Minute), time.Now().Add(1000*time.Hour)))
			}
			server := b.ServerTLS()
			_, client := ticketOf(t, server, a.ClientTLS(store))
			server = spoil(server, b, &c)
			if cs, _ := mustShake(t, server, client); cs.DidResume {
				t.Error("resumed")
			}
			if cs, _ := mustShake(t, server, client); !cs.DidResume {
				t.Error("not resumed with the ticket after it")
			}
		})
	}
}

func TestTicketsOutliveOneTurnOfKeys(t *testing.T) {
	ca := newAuthority(t)
	var c clock
	a, b := workload(t, ca, web), workload(t, ca, store, func(cfg *Config) { cfg.Now = c.now })
	server := b.ServerTLS()
	_, client := ticketOf(t, server, a.ClientTLS(store))
	for range 2 { // the second is with the ticket of the first
		c.move(ticketLife * 3 / 4)
		if cs, _ := mustShake(t, server, client); !cs.DidResume {
			t.Error("not resumed")
		}
	}
}

// Whatever is changed in a ticket, there is no session in it, and no error that
// would end the connection.
func FuzzTicket(f *testing.F) {
	ca := newAuthority(f)
	a, b := workload(f, ca, web), workload(f, ca, store)
	server := b.ServerTLS()
	good, _ := ticketOf(f, server, a.ClientTLS(store))
	if s, err := server.UnwrapSession(good, tls.ConnectionState{}); s == nil || err != nil {
		f.Fatal("the good one:", err)
	}
	f.Add(0, byte(1), len(good))
	f.Add(len(good)-1, byte(0x80), len(good))
	f.Add(0, byte(0), 0)
	f.Add(0, byte(0), len(good)-1)
	f.Fuzz(func(t *testing.T, at int, change byte, n int) {
		ticket := slices.Clone(good)
		if at >= 0 && at < len(ticket) {
			ticket[at] ^= change
		}
		if n >= 0 && n < len(ticket) {
			ticket = ticket[:n]
		}
		s, err := server.UnwrapSession(ticket, tls.ConnectionState{})
		if err != nil {
			t.Fatal(err)
		}
		if (s != nil) != bytes.Equal(ticket, good) {
			t.Errorf("byte %d changed by %x, cut to %d: session %v", at, change, n, s != nil)
		}
	})
}

func TestATicketNeedsItsCertificate(t *testing.T) {
	ca := newAuthority(t)
	b := workload(t, ca, store)
	k := &tickets{i: b}
	if _, err := k.wrap(tls.ConnectionState{}, &tls.SessionState{}); err == nil {
		t.Error("wrapped a session of nobody")
	}
	cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{b.now.Load().chain[0]}}
	if _, err := k.wrap(cs, &tls.SessionState{}); err == nil {
		t.Error("wrapped a session without the certificate that it should hold")
	}
}
