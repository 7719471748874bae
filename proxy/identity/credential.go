package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// credential is what this workload joins with, and by what it knows the control
// plane that it shows it to.
type credential struct {
	domain     spiffeid.TrustDomain // zero: the control plane tells it
	calls      string               // the name by which the control plane is called
	ask        func(csr []byte) *wire.JoinRequest
	verify     func(cs tls.ConnectionState, now time.Time) error
	vouchedFor func(roots []*x509.Certificate) bool // one of them is the one it goes by
}

// credential gives the one configured. The error says what to do.
func (i *Identity) credential() (credential, error) {
	if i.cfg.AccountTokenFile != "" {
		return i.accountCredential()
	}
	t, err := i.readToken()
	if err != nil {
		return credential{}, err
	}
	return credential{
		domain: t.domain, calls: t.calls(), verify: t.verifyServer, vouchedFor: t.vouchedFor,
		ask: func(csr []byte) *wire.JoinRequest { return &wire.JoinRequest{Token: t.text, Csr: csr} },
	}, nil
}

// maxAccountToken bounds a service account's token: Kubernetes makes them of about
// 1 KiB.
const maxAccountToken = 16 << 10

// accountCredential is the token of a Kubernetes service account. It says nothing
// of the control plane, so that is known by its root, from a file.
func (i *Identity) accountCredential() (credential, error) {
	text, err := os.ReadFile(i.cfg.AccountTokenFile)
	if err != nil {
		return credential{}, fmt.Errorf("service account's token: %w; has the pod a projected volume with a serviceAccountToken?", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(token) > maxAccountToken {
		return credential{}, fmt.Errorf("service account's token: %s holds %d bytes, not a token", i.cfg.AccountTokenFile, len(token))
	}
	roots, err := i.controlRoots()
	if err == nil && len(roots) == 0 {
		err = errors.New("no root of the control plane was given")
	}
	if err != nil {
		return credential{}, err
	}
	name := &wire.Name{Namespace: i.cfg.Service.Namespace, Name: i.cfg.Service.Name}
	return credential{
		calls: policy.ControlPlane.Name + "." + policy.ControlPlane.Namespace,
		ask: func(csr []byte) *wire.JoinRequest {
			return &wire.JoinRequest{KubernetesToken: token, Service: name, Csr: csr}
		},
		verify:     func(cs tls.ConnectionState, now time.Time) error { return verifyControl(cs, roots, now) },
		vouchedFor: func(known []*x509.Certificate) bool { return len(union(known, roots)) < len(known)+len(roots) },
	}, nil
}

// verifyControl checks that a server is the control plane of whatever trust domain
// these roots vouch for.
func verifyControl(cs tls.ConnectionState, roots []*x509.Certificate, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return errNothingShown
	}
	id, err := x509svid.IDFromCert(cs.PeerCertificates[0])
	if err != nil {
		return fmt.Errorf("the control plane: %w", err)
	}
	server, err := trustIn(roots, id.TrustDomain()).verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return fmt.Errorf("the control plane: %w", err)
	}
	if server.name != policy.ControlPlane {
		return fmt.Errorf("the server is %s, not the control plane", server.name)
	}
	return nil
}
