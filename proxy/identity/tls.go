package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/weir-mesh/weir/policy"
)

// curves has the hybrid with ML-KEM first: what is recorded today is not to be
// read by a quantum computer tomorrow. Beside X25519 alone it costs a half more
// CPU per full handshake, three quarters more per resumed one, and 2 to 3 KiB
// per connection, that crypto/tls keeps of its hellos.
var curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}

var (
	errNoCertificate = errors.New("this workload has no certificate yet")
	errNothingShown  = errors.New("the peer showed no certificate")
)

// ServerTLS is for connections from other workloads: TLS 1.3, a client
// certificate of our trust domain required, the newest certificate and bundle
// at each handshake. alpn lists the protocols to take, by default ALPN; a
// client that asks for none of them is refused.
// Each call makes a configuration with its own session ticket keys: keep it.
// It is shared by all its connections: not to be changed.
func (i *Identity) ServerTLS(alpn ...string) *tls.Config {
	if len(alpn) == 0 {
		alpn = []string{ALPN}
	}
	alpn = slices.Clone(alpn)
	t := &tickets{i: i}
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: curves,
		NextProtos:       alpn,
		Time:             i.cfg.Now,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		// crypto/tls would check the chain of every full handshake anew, for a
		// fifth of its cost. VerifyConnection checks chain and name, of resumed
		// sessions too, and remembers whom it has seen.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkProtocol(cs, alpn); err != nil {
				return err
			}
			return i.verifyClient(cs)
		},
		WrapSession:   t.wrap,
		UnwrapSession: t.unwrap,
	}
}

func (i *Identity) certificate() (*tls.Certificate, error) {
	if h := i.now.Load(); h != nil {
		return &h.cert, nil
	}
	return nil, errNoCertificate
}

// verifyClient accepts any workload of our trust domain.
func (i *Identity) verifyClient(cs tls.ConnectionState) error {
	h := i.now.Load()
	if h == nil {
		return errNoCertificate
	}
	p, err := h.trust.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, i.cfg.Now())
	if err != nil {
		return err
	}
	if err := i.checkRevoked(p); err != nil {
		return err
	}
	share(cs, p)
	return nil
}

// share makes a server's connections from one peer keep one parsed certificate,
// where crypto/tls parses 3 KiB for each. The documentation asks to leave
// PeerCertificates alone, for it may be shared: after a full handshake of a
// server it is of this connection only, which nobody else has yet, and what is
// put there is equal in every byte.
func share(cs tls.ConnectionState, p *known) {
	if certs := cs.PeerCertificates; !cs.DidResume && bytes.Equal(certs[0].Raw, p.leaf.Raw) {
		certs[0] = p.leaf
	}
}

// ClientTLS is for connections to a workload, which must prove to be expect.
// The configuration is shared: not to be changed, but to be cloned.
func (i *Identity) ClientTLS(expect policy.ServiceName, alpn ...string) *tls.Config {
	return i.clients.get(i, clientKey{service: expect, alpn: strings.Join(alpn, "\x00")})
}

// ClientTLSAt is ClientTLS for one endpoint of a service, at address: sessions
// are resumed with the endpoint that gave them, where ClientTLS has one for all
// and so resumes less often the more endpoints there are.
func (i *Identity) ClientTLSAt(expect policy.ServiceName, address string, alpn ...string) *tls.Config {
	return i.clients.get(i, clientKey{service: expect, address: address, alpn: strings.Join(alpn, "\x00")})
}

// ControlTLS is for connections to the control plane, once Start returned.
func (i *Identity) ControlTLS() *tls.Config { return i.ClientTLS(policy.ControlPlane, "h2") }

// clientConfigs hands out one configuration per peer, so that a connection
// costs a look-up.
type clientConfigs struct {
	mu       sync.RWMutex // guards what follows
	made     map[clientKey]*tls.Config
	sessions tls.ClientSessionCache // of all of them: what is cleared here is not lost there
}

type clientKey struct {
	service policy.ServiceName
	address string
	alpn    string // joined by NUL; "" is ALPN
}

const (
	maxClients  = 4096
	maxSessions = 2048 // about 0.7 KiB each; the certificates are shared
)

func (c *clientConfigs) get(i *Identity, key clientKey) *tls.Config {
	c.mu.RLock()
	cfg := c.made[key]
	c.mu.RUnlock()
	if cfg != nil {
		return cfg
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cfg := c.made[key]; cfg != nil {
		return cfg
	}
	if c.made == nil || len(c.made) >= maxClients {
		c.made = map[clientKey]*tls.Config{}
	}
	if c.sessions == nil {
		c.sessions = tls.NewLRUClientSessionCache(maxSessions)
	}
	cfg = i.clientConfig(key, c.sessions)
	c.made[key] = cfg
	return cfg
}

func (i *Identity) clientConfig(key clientKey, cache tls.ClientSessionCache) *tls.Config {
	alpn := []string{ALPN}
	if key.alpn != "" {
		alpn = strings.Split(key.alpn, "\x00")
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   curves,
		NextProtos:         alpn,
		ServerName:         key.service.Name + "." + key.service.Namespace,
		Time:               i.cfg.Now,
		ClientSessionCache: &sessions{i, key.service.String() + "\x00" + key.address + "\x00" + key.alpn, cache},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return i.certificate()
		},
		// The name that counts is a SPIFFE ID, and the roots may be replaced while
		// the configuration lives; crypto/tls can do neither. VerifyConnection
		// checks chain and name, of resumed sessions too.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkProtocol(cs, alpn); err != nil {
				return err
			}
			return i.verifyServer(cs, key.service)
		},
	}
}

// verifyServer accepts the workload that was expected.
func (i *Identity) verifyServer(cs tls.ConnectionState, expect policy.ServiceName) error {
	h := i.now.Load()
	if h == nil {
		return errNoCertificate
	}
	p, err := h.trust.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, i.cfg.Now())
	if err != nil {
		return fmt.Errorf("peer at %s: %w", expect, err)
	}
	if p.name != expect {
		return &refusal{"other-service", fmt.Errorf("peer is %s, not %s", p.name, expect)}
	}
	return i.checkRevoked(p)
}

// checkProtocol makes sure that both sides mean the same: crypto/tls lets a
// handshake pass in which one side named no protocol at all.
func checkProtocol(cs tls.ConnectionState, alpn []string) error {
	if !slices.Contains(alpn, cs.NegotiatedProtocol) {
		return &refusal{"protocol", fmt.Errorf("peer chose protocol %q, not one of %q", cs.NegotiatedProtocol, alpn)}
	}
	return nil
}

// Peer tells who the other side of a handshake is, that was made with a
// configuration of this package. It costs a few hundred nanoseconds: call it
// once per connection.
func (i *Identity) Peer(cs tls.ConnectionState) (policy.ServiceName, error) {
	h := i.now.Load()
	if h == nil {
		return policy.ServiceName{}, errNoCertificate
	}
	if len(cs.PeerCertificates) == 0 {
		return policy.ServiceName{}, errNothingShown
	}
	return h.trust.name(cs.PeerCertificates[0])
}

// sessions keeps the sessions with one peer apart from those with others, and
// those made under one trust bundle apart from those under the next: after a
// root is gone, crypto/tls would offer the old session for ever, and every
// handshake would fail on it.
type sessions struct {
	i     *Identity
	key   string
	cache tls.ClientSessionCache
}

func (s *sessions) name() string {
	if h := s.i.now.Load(); h != nil {
		return s.key + "\x00" + h.trust.id
	}
	return s.key
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(string) (*tls.ClientSessionState, bool) { return s.cache.Get(s.name()) }

// Put implements tls.ClientSessionCache.
func (s *sessions) Put(_ string, cs *tls.ClientSessionState) { s.cache.Put(s.name(), cs) }
