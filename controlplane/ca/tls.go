package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/weir-mesh/weir/policy"
)

// MeshALPN is the protocol name by which workloads tell the mesh's TLS from
// their application's.
const MeshALPN = "weir"

// ServerTLS is for the port that proxies use: TLS 1.3, the control plane's own
// certificate followed by the root, and a client's certificate verified if it
// shows one, by its end and not by its beginning (see verifyChain). Handlers ask Peer who it is. The certificate renews itself.
func (a *Authority) ServerTLS() *tls.Config {
	return a.serverTLS(a.verifyClient, "h2")
}

// HTTPSTLS is for the REST API on an address that is not loopback: the same
// certificate. Clients are asked for one of the mesh, so that the API can tell a
// workload that tries by its certificate; it is not verified and opens nothing.
func (a *Authority) HTTPSTLS() *tls.Config {
	return a.serverTLS(nil, "h2", "http/1.1")
}

// serverTLS asks for a client's certificate, and has it verified by verify.
func (a *Authority) serverTLS(verify func(tls.ConnectionState) error, protocols ...string) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, Time: a.cfg.Now, ClientAuth: tls.RequestClientCert, VerifyConnection: verify,
		// Connections to the control plane are few and long. Without tickets
		// every one of them is verified against the present bundle.
		SessionTicketsDisabled: true,
		GetCertificate:         func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.ownCertificate(hello.ServerName) },
	}
	cfg := base.Clone()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.ClientCAs = a.pool()
		return c, nil
	}
	return cfg
}

// ClientTLS is for the control plane's calls to workloads: TLS 1.3, its own
// certificate, ALPN "weir". The workload must be the service named; the zero
// name takes any workload of the mesh, and the caller asks PeerOf which it is.
func (a *Authority) ClientTLS(expect policy.ServiceName) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{MeshALPN}, Time: a.cfg.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.ownCertificate("") },
		// The chain is verified below, against the roots of the moment and
		// without a host name: workloads are known by their SPIFFE ID.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			name, err := a.verify(state)
			if err == nil && !expect.IsZero() && name != expect {
				err = fmt.Errorf("%w: it is %s, expected is %s", ErrPeer, name, expect)
			}
			return err
		},
	}
	if !expect.IsZero() {
		cfg.ServerName = expect.Name + "." + expect.Namespace
	}
	return cfg
}

// verify checks a server's chain and gives its name.
func (a *Authority) verify(state tls.ConnectionState) (policy.ServiceName, error) {
	if len(state.PeerCertificates) == 0 {
		return policy.ServiceName{}, fmt.Errorf("%w: no certificate", ErrPeer)
	}
	if err := a.verifyChain(state.PeerCertificates, x509.ExtKeyUsageServerAuth); err != nil {
		return policy.ServiceName{}, err
	}
	return a.nameIn(state.PeerCertificates[0])
}

// verifyClient checks a client's chain, if it shows one. Who it is, and whether
// that may be, the handlers ask.
func (a *Authority) verifyClient(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	return a.verifyChain(state.PeerCertificates, x509.ExtKeyUsageClientAuth)
}

// verifyChain checks a chain against the roots of the moment. One that begins
// later than now counts: what is signed by our roots was signed by now, so it is
// this clock that is behind, and a control plane whose clock was set back would
// else take no proxy that it had, and find each of their apps unhealthy.
func (a *Authority) verifyChain(chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	now := a.cfg.Now()
	if chain[0].NotBefore.After(now) {
		now = chain[0].NotBefore
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: a.pool(), Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return nil
}

// Peer tells which service is at the other end of a gRPC call, from its
// verified certificate. Errors wrap ErrPeer.
func (a *Authority) Peer(ctx context.Context) (policy.ServiceName, error) {
	name, _, err := a.peer(ctx)
	return name, err
}

// peer gives the leaf too, where there is no error.
func (a *Authority) peer(ctx context.Context) (policy.ServiceName, *x509.Certificate, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return policy.ServiceName{}, nil, fmt.Errorf("%w: not a network call", ErrPeer)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return policy.ServiceName{}, nil, fmt.Errorf("%w: not over TLS", ErrPeer)
	}
	name, err := a.PeerOf(info.State)
	if err != nil {
		return name, nil, err
	}
	return name, info.State.PeerCertificates[0], nil
}

// PeerOf tells which service is at the other end of a connection that was made
// with ServerTLS or ClientTLS. A certificate that has ended since counts no
// longer. Errors wrap ErrPeer.
func (a *Authority) PeerOf(state tls.ConnectionState) (policy.ServiceName, error) {
	if len(state.PeerCertificates) == 0 {
		return policy.ServiceName{}, fmt.Errorf("%w: no certificate was shown", ErrPeer)
	}
	leaf := state.PeerCertificates[0]
	name, err := a.nameIn(leaf)
	if err == nil {
		err = a.checkCertificate(name, leaf)
	}
	if err == nil && a.cfg.Now().After(leaf.NotAfter) {
		err = fmt.Errorf("%w: its certificate has expired", ErrPeer)
	}
	if err != nil {
		return policy.ServiceName{}, err
	}
	return name, nil
}

// nameIn reads the name in a verified certificate: exactly one URI (X509-SVID
// section 2), a SPIFFE ID of this trust domain.
func (a *Authority) nameIn(cert *x509.Certificate) (policy.ServiceName, error) {
	if len(cert.URIs) != 1 {
		return policy.ServiceName{}, fmt.Errorf("%w: its certificate has %d URIs, not one", ErrPeer, len(cert.URIs))
	}
	id, err := spiffeid.FromURI(cert.URIs[0])
	if err != nil {
		return policy.ServiceName{}, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	if !id.MemberOf(a.domain) {
		return policy.ServiceName{}, fmt.Errorf("%w: %s is not of the trust domain %q", ErrPeer, id, a.domain.Name())
	}
	name, err := a.cfg.IDs.Parse(id.Path())
	if err != nil {
		return policy.ServiceName{}, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return name, nil
}

// FirstContact is what a proxy that knows nothing but its token calls the control
// plane by: with half of the fingerprint in the token, which is as much as a label
// holds (RFC 1035 section 2.3.4), it is shown a certificate under that root while two
// are trusted.
func FirstContact(fingerprint string) string {
	return firstContact + fingerprint[:min(len(fingerprint), 32)] + "." + policy.ControlPlane.Name + "." + policy.ControlPlane.Namespace
}

const firstContact = "ca-"

// ownCertificate gives the control plane's certificate for who calls it by a name,
// made anew with a new key when half its life is over or another authority signs.
func (a *Authority) ownCertificate(calledBy string) (*tls.Certificate, error) {
	now := a.cfg.Now()
	a.mu.Lock()
	signer, err := a.issuerForLocked(calledBy, now)
	var own *ownCertificate
	if err == nil {
		own = a.own[signer.root.fingerprint()]
	}
	a.mu.Unlock()
	if err != nil {
		return nil, errors.Join(errors.New("the control plane's own certificate"), err)
	}
	if own != nil && own.by.cert.Equal(signer.cert) && now.Before(own.cert.Leaf.NotAfter.Add(-a.cfg.LeafTTL/2)) {
		return own.cert, nil
	}
	return a.makeOwn(signer)
}

// issuerForLocked is the one that signs, or else that of another root that the
// caller knows.
func (a *Authority) issuerForLocked(calledBy string, now time.Time) (*issuer, error) {
	rest, ok := strings.CutPrefix(calledBy, firstContact)
	half, _, _ := strings.Cut(rest, ".")
	if ok && len(half) == 32 {
		for _, i := range a.issuersLocked() {
			if strings.HasPrefix(i.root.fingerprint(), half) && a.trustsLocked(i.root.fingerprint()) && now.Before(i.notAfter()) {
				return i, nil
			}
		}
	}
	return a.signerLocked(now)
}

// makeOwn may be run by two callers at once; either result serves.
func (a *Authority) makeOwn(signer *issuer) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the control plane's key: %w", err)
	}
	// control.weir-system is what proxies call it by, as they call workloads
	// service.namespace.
	hosts := []string{policy.ControlPlane.Name + "." + policy.ControlPlane.Namespace, "localhost", "127.0.0.1", "::1"}
	for _, h := range a.cfg.Hosts {
		if h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	der, err := a.signBy(signer, policy.ControlPlane, key.Public(), hosts, 0)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the control plane's certificate: %w", err)
	}
	own := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	for _, c := range signer.between {
		own.Certificate = append(own.Certificate, c.Raw)
	}
	own.Certificate = append(own.Certificate, signer.root.cert.Raw)
	a.mu.Lock()
	defer a.mu.Unlock()
	for fp := range a.own {
		if !a.trustsLocked(fp) {
			delete(a.own, fp)
		}
	}
	a.own[signer.root.fingerprint()] = &ownCertificate{own, signer}
	return own, nil
}
