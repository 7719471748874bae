package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/weir-mesh/weir/policy"
)

// maxCSR bounds what is parsed; a request with an 8192-bit RSA key has 3 kB.
const maxCSR = 16 << 10

var errAnother = errors.New("asks for the identity")

// IssueForCSR signs the key of a certificate signing request, DER or PEM, for a
// service and gives the certificate, PEM. Nothing of the request is taken but
// its key; one that asks for the identity of another is refused. Errors wrap
// ErrName or ErrCSR where the caller is to blame.
func (a *Authority) IssueForCSR(name policy.ServiceName, csr []byte) (chainPEM []byte, err error) {
	return a.issue(name, csr, 0)
}

// issue signs for a family: that of the token or certificate which is shown.
func (a *Authority) issue(name policy.ServiceName, csr []byte, family uint64) (chainPEM []byte, err error) {
	if err := errors.Join(checkName(name), a.checkIdentity(name)); err != nil {
		return nil, err
	}
	key, err := a.keyOf(name, csr)
	if err != nil {
		return nil, err
	}
	der, by, err := a.sign(name, key, nil, family)
	if err != nil {
		return nil, err
	}
	return by.chainPEM(der), nil
}

// IssueWithKey makes an ECDSA P-256 key for a service, signs it and gives the
// certificate and the key (PKCS #8), PEM. The key is not kept. Errors wrap
// ErrName where the caller is to blame.
func (a *Authority) IssueWithKey(name policy.ServiceName) (chainPEM, keyPEM []byte, err error) {
	if err := errors.Join(checkName(name), a.checkIdentity(name)); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the key of %s: %w", name, err)
	}
	der, by, err := a.sign(name, key.Public(), nil, 0)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key of %s: %w", name, err)
	}
	return by.chainPEM(der),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// keyOf gives the public key of a request that its owner may send.
func (a *Authority) keyOf(name policy.ServiceName, csr []byte) (crypto.PublicKey, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes are more than %d", ErrCSR, len(csr), maxCSR)
	}
	if bytes.HasPrefix(bytes.TrimSpace(csr), []byte("-----BEGIN")) {
		block, rest := pem.Decode(csr)
		if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("%w: not one PEM block of type CERTIFICATE REQUEST", ErrCSR)
		}
		csr = block.Bytes
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	// The key is looked at before the signature: checking one by a huge RSA key
	// is work that a stranger could make us do.
	if err := checkKey(req.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: its signature is not by its key: %w", ErrCSR, err)
	}
	own := name.SPIFFE(a.domain.Name())
	for _, uri := range req.URIs {
		if uri.String() != own {
			return nil, fmt.Errorf("%w: %w %s; it is for %s", ErrCSR, errAnother, uri, own)
		}
	}
	return req.PublicKey, nil
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("ECDSA keys are to be on P-256 or P-384, not %s", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("RSA keys are to have 2048 to 8192 bits, not %d", bits)
		}
	default:
		return fmt.Errorf("keys of type %T are not taken; ECDSA P-256 is", key)
	}
	return nil
}

// sign makes the certificate of a name with what signs now. hosts are more names
// and addresses.
func (a *Authority) sign(name policy.ServiceName, key crypto.PublicKey, hosts []string, family uint64) ([]byte, *issuer, error) {
	signer, err := a.signer()
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of %s: %w", name, err)
	}
	der, err := a.signBy(signer, name, key, hosts, family)
	return der, signer, err
}

func (a *Authority) signBy(signer *issuer, name policy.ServiceName, key crypto.PublicKey, hosts []string, family uint64) ([]byte, error) {
	serial, err := newSerial(family)
	if err != nil {
		return nil, err
	}
	template := a.template(name, signer)
	template.SerialNumber = serial
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, key, signer.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	return der, nil
}

func (a *Authority) template(name policy.ServiceName, signer *issuer) *x509.Certificate {
	now := a.cfg.Now()
	end := now.Add(a.cfg.LeafTTL)
	if last := signer.notAfter(); end.After(last) {
		end = last
	}
	dotted := name.Namespace + "." + name.Name
	subject := pkix.Name{Organization: []string{"Service Mesh"}, CommonName: dotted}
	if len(dotted) > 64 { // ub-common-name, RFC 5280 appendix A; the SANs hold the name anyway
		subject.CommonName = ""
	}
	begin := now.Add(-backdate)
	if name == policy.ControlPlane {
		// Made by a clock that is ahead it is to hold for those who have the right
		// time; nobody trusts it for its beginning.
		begin = signer.cert.NotBefore
	}
	return &x509.Certificate{
		Subject:   subject,
		NotBefore: begin, NotAfter: end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{dotted, name.Name + "." + name.Namespace + ".svc.cluster.local"},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: a.domain.Name(), Path: "/ns/" + name.Namespace + "/sa/" + name.Name}},
	}
}
