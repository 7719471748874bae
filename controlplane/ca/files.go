package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// Files are those of a certificate authority of one's own, in PEM. The certificate
// is an authority below a root, or a root; the chain holds what is above it, the root
// included, and may be left out for a root.
type Files struct{ Cert, Key, Chain string }

func (f Files) given() bool { return f.Cert != "" }

// filesState is what of the files is in force.
type filesState struct {
	inForce *issuer // nil where the mesh's own roots sign
	offered *issuer // under a root that the mesh does not trust yet
	digest  [sha256.Size]byte
	refused uint64 // changes that were
	problem string // of the last change; "" when it is good
}

// filesEvery is how often the files are looked at.
const filesEvery = 2 * time.Second

// maxFile bounds what is read.
const maxFile = 1 << 20

// openFiles reads the files at the start, where an error ends it, and tells what
// they are to the mesh that the store knows of.
func (a *Authority) openFiles(ctx context.Context) error {
	f := a.cfg.Files
	if !f.given() {
		if f.Key != "" || f.Chain != "" {
			return errors.New("--ca-key and --ca-chain go with --ca-cert, which is not given")
		}
		return nil
	}
	i, digest, err := a.readFiles()
	if err != nil {
		return err
	}
	a.files.digest = digest
	if a.known.Revision == 0 && a.known.Signs == "" {
		kept, err := a.cfg.Keep.Get(ctx, rootKey(1))
		if err != nil {
			return fmt.Errorf("look for a root that the mesh has: %w", err)
		}
		if kept == nil { // a mesh that begins
			a.known.Foreign, a.known.Signs = []string{string(i.root.pem)}, i.root.fingerprint()
		}
	}
	a.take(i)
	return nil
}

// take puts the files in force where the mesh signs under their root, and has them
// wait for a rotation else.
func (a *Authority) take(i *issuer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known.Signs == i.root.fingerprint() {
		a.files.inForce, a.files.offered = i, nil
		return
	}
	a.files.offered = i
	if r := a.known.Rotation; !r.Running() || r.New != i.root.fingerprint() {
		a.cfg.Log.Warn("the certificate authority of --ca-cert stands under a root that the mesh does not trust yet, and waits for: weir ca rotate",
			zap.String("file", a.cfg.Files.Cert), zap.String("root", short(i.root.fingerprint())))
	}
}

// Reload looks at the files. Bad ones are refused, counted and told; what was in
// force stays.
func (a *Authority) Reload() {
	if !a.cfg.Files.given() {
		return
	}
	text, err := a.cfg.Files.text()
	digest := sha256.Sum256(bytes.Join(text, []byte{0}))
	a.mu.Lock()
	seen := a.files.digest
	a.mu.Unlock()
	if err == nil && digest == seen {
		return
	}
	var i *issuer
	if err == nil {
		i, err = a.parseFiles(text)
	}
	a.mu.Lock()
	a.files.digest = digest
	same := err != nil && a.files.problem == err.Error()
	a.files.problem = ""
	if err != nil {
		a.files.problem = err.Error()
	}
	if err != nil && !same {
		a.files.refused++
	}
	a.mu.Unlock()
	switch {
	case same:
	case err != nil:
		a.cfg.Log.Error("the files of the certificate authority are refused; what was in force stays", zap.Error(err))
	default:
		a.take(i)
		a.cfg.Log.Info("the files of the certificate authority were read anew", zap.Time("ends", i.notAfter()), zap.String("root", short(i.root.fingerprint())))
	}
}

// text reads the three files. The chain may be none.
func (f Files) text() ([][]byte, error) {
	out := make([][]byte, 3)
	for n, file := range []struct{ flag, path string }{{"--ca-cert", f.Cert}, {"--ca-key", f.Key}, {"--ca-chain", f.Chain}} {
		if file.path == "" {
			if file.flag == "--ca-key" {
				return out, errors.New("--ca-key is missing; it goes with --ca-cert")
			}
			continue
		}
		text, err := os.ReadFile(file.path)
		if err != nil {
			return out, fmt.Errorf("%s: %w", file.flag, err)
		}
		if len(text) > maxFile {
			return out, fmt.Errorf("%s: %s has %d bytes, more than %d", file.flag, file.path, len(text), maxFile)
		}
		out[n] = text
	}
	return out, nil
}

func (a *Authority) readFiles() (*issuer, [sha256.Size]byte, error) {
	text, err := a.cfg.Files.text()
	if err != nil {
		return nil, [sha256.Size]byte{}, err
	}
	i, err := a.parseFiles(text)
	return i, sha256.Sum256(bytes.Join(text, []byte{0})), err
}

// parseFiles checks that certificate, key and chain belong together and can sign
// what proxies take.
func (a *Authority) parseFiles(text [][]byte) (*issuer, error) {
	f := a.cfg.Files
	pair, err := tls.X509KeyPair(text[0], text[1])
	if err != nil {
		return nil, fmt.Errorf("--ca-cert %s and --ca-key %s: %w", f.Cert, f.Key, err)
	}
	certs, err := parseChain(text[0])
	if err != nil {
		return nil, fmt.Errorf("--ca-cert %s: %w", f.Cert, err)
	}
	if len(bytes.TrimSpace(text[2])) > 0 {
		above, err := parseChain(text[2])
		if err != nil {
			return nil, fmt.Errorf("--ca-chain %s: %w", f.Chain, err)
		}
		certs = append(certs, above...)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("--ca-key %s: a key of type %T cannot sign", f.Key, pair.PrivateKey)
	}
	i := &issuer{cert: certs[0], key: key}
	if i.between, i.root, err = climb(certs); err != nil {
		return nil, fmt.Errorf("--ca-cert %s: %w", f.Cert, err)
	}
	if err := a.try(i); err != nil {
		return nil, fmt.Errorf("--ca-cert %s: what it signs would not be taken: %w", f.Cert, err)
	}
	return i, nil
}

// climb goes from the first certificate to its root.
func climb(certs []*x509.Certificate) (between []*x509.Certificate, top *root, err error) {
	at := certs[0]
	for range len(certs) {
		if !at.IsCA || !at.BasicConstraintsValid {
			return nil, nil, fmt.Errorf("%q is not a certificate authority", at.Subject)
		}
		if bytes.Equal(at.RawSubject, at.RawIssuer) && at.CheckSignatureFrom(at) == nil {
			return between, &root{cert: at, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: at.Raw})}, nil
		}
		between = append(between, at)
		var parent *x509.Certificate
		for _, c := range certs {
			if c != at && at.CheckSignatureFrom(c) == nil {
				parent = c
			}
		}
		if parent == nil {
			return nil, nil, fmt.Errorf("nothing in it or in --ca-chain has signed %q; the chain is to reach up to the root", at.Subject)
		}
		at = parent
	}
	return nil, nil, errors.New("the chain goes in a circle")
}

// try signs a certificate as of a workload and verifies it, as proxies do: that
// finds whatever keeps an authority from being of use (its end, its constraints, the
// length of the path, what its key is for).
func (a *Authority) try(i *issuer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := a.signBy(i, policy.ServiceName{Namespace: "default", Name: "trial"}, key.Public(), nil, 0)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(i.root.cert)
	for _, c := range i.between {
		between.AddCert(c)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: a.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			return err
		}
	}
	return nil
}

// parseChain reads PEM that holds certificates and nothing else.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s beside certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return out, nil
}
