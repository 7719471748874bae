package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/weir-mesh/weir/policy"
)

// token is what a join token says of itself. Only the control plane can check
// its signature; a proxy trusts it because whoever started it wrote the file.
type token struct {
	text    string // as it goes to the control plane; a secret
	service policy.ServiceName
	expires time.Time
	domain  spiffeid.TrustDomain
	ca      [sha256.Size]byte // of the root's public key (SubjectPublicKeyInfo)
}

const (
	tokenPrefix = "weir1"
	maxToken    = 4096 // bytes
	// clockSlack is how long after its end by our clock a token is tried all the
	// same: the clock may be ahead.
	clockSlack = 10 * time.Minute
)

// parseToken reads "weir1.<base64url JSON>.<base64url signature>". No error
// quotes the token.
func parseToken(text string) (token, error) {
	text = strings.TrimSpace(text)
	parts := strings.Split(text, ".")
	if len(text) > maxToken || len(parts) != 3 || parts[0] != tokenPrefix || parts[2] == "" {
		return token{}, errors.New("not a join token (weir1.….…)")
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return token{}, errors.New("join token: its middle part is not base64url")
	}
	var says struct {
		Svc, NS, TD, CA string
		Exp             int64
	}
	if err := json.Unmarshal(raw, &says); err != nil {
		return token{}, errors.New("join token: its middle part is not the JSON expected")
	}
	t := token{text: text, service: policy.ServiceName{Namespace: says.NS, Name: says.Svc}, expires: time.Unix(says.Exp, 0)}
	if err := t.service.Validate(); err != nil {
		return token{}, fmt.Errorf("join token: %w", err)
	}
	if t.domain, err = spiffeid.TrustDomainFromString(says.TD); err != nil {
		return token{}, fmt.Errorf("join token: %w", err)
	}
	if n, err := hex.Decode(t.ca[:], []byte(says.CA)); err != nil || n != len(t.ca) || len(says.CA) != 2*len(t.ca) {
		return token{}, errors.New("join token: the control plane's fingerprint is not 64 hexadecimal digits")
	}
	return t, nil
}

// advice is what to do where there is no token that holds.
func (i *Identity) advice() string {
	if i.cfg.AccountTokenFile != "" {
		return "weir control --kubernetes-join says which service accounts may join as which service (--kubernetes-map)"
	}
	return fmt.Sprintf("make one with: weir token create --service %s --namespace %s", i.cfg.Service.Name, i.cfg.Service.Namespace)
}

// readToken reads the token file and checks what can be checked here. The error
// says what to do.
func (i *Identity) readToken() (token, error) {
	advice := i.advice()
	text, err := os.ReadFile(i.cfg.TokenFile)
	if err != nil {
		return token{}, fmt.Errorf("read join token: %w; %s", err, advice)
	}
	t, err := parseToken(string(text))
	switch {
	case err != nil:
		return token{}, fmt.Errorf("%s: %w; %s", i.cfg.TokenFile, err, advice)
	case t.service != i.cfg.Service:
		return token{}, fmt.Errorf("%s: the join token is of %s, but this proxy is to be %s; %s", i.cfg.TokenFile, t.service, i.cfg.Service, advice)
	case i.cfg.Now().After(t.expires.Add(clockSlack)): // else the control plane decides, by its clock
		return token{}, fmt.Errorf("%s: the join token expired at %s; %s", i.cfg.TokenFile, t.expires.UTC().Format(time.RFC3339), advice)
	}
	return t, nil
}

// verifyServer checks the control plane at first contact, when nothing but the
// token is known: it must show a root whose key has the token's fingerprint, and
// a certificate of the control plane that this root signed.
func (t *token) verifyServer(cs tls.ConnectionState, now time.Time) error {
	root := t.findRoot(cs.PeerCertificates)
	if root == nil {
		return fmt.Errorf("the control plane is not the one of the join token: no certificate that it shows has the fingerprint %x", t.ca)
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("the control plane's root is not its own: %w", err)
	}
	server, err := trustIn([]*x509.Certificate{root}, t.domain).verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return fmt.Errorf("the control plane: %w", err)
	}
	if server.name != policy.ControlPlane {
		return fmt.Errorf("the server is %s, not the control plane", server.name)
	}
	return nil
}

// calls is the name by which the control plane is called at first contact: with the
// half of the fingerprint that fits into a label, it shows a certificate under that
// root while the mesh trusts two.
func (t *token) calls() string {
	return "ca-" + hex.EncodeToString(t.ca[:16]) + "." + policy.ControlPlane.Name + "." + policy.ControlPlane.Namespace
}

func (t *token) findRoot(certs []*x509.Certificate) *x509.Certificate {
	for n, c := range certs {
		if n > 0 && sha256.Sum256(c.RawSubjectPublicKeyInfo) == t.ca {
			return c
		}
	}
	return nil
}

// vouchedFor tells whether one of the roots is the token's.
func (t *token) vouchedFor(roots []*x509.Certificate) bool {
	for _, c := range roots {
		if sha256.Sum256(c.RawSubjectPublicKeyInfo) == t.ca {
			return true
		}
	}
	return false
}
