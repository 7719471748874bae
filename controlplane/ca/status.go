package ca

import "crypto/x509"

// The kinds of certificates that the authority has.
const (
	KindRoot         = "root"
	KindIntermediate = "intermediate"
	KindControl      = "control"
)

// Certificate is one that the authority has.
type Certificate struct {
	Kind        string
	Cert        *x509.Certificate
	Fingerprint string // hex SHA-256 of the public key
	Signs       bool   // it signs, or what is under it does
	Needed      bool   // its end is the end of something
}

// Certificates lists the roots that are trusted, what is between the root that signs
// and the leaves, and the control plane's own.
func (a *Authority) Certificates() []Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	signer, err := a.signerLocked(a.cfg.Now())
	under := ""
	if err == nil {
		under = signer.root.fingerprint()
	}
	var out []Certificate
	for _, r := range a.trustedLocked() {
		signs := r.fingerprint() == under
		out = append(out, Certificate{KindRoot, r.cert, r.fingerprint(), signs, signs})
	}
	if err != nil {
		return out
	}
	for _, c := range signer.between {
		out = append(out, Certificate{KindIntermediate, c, fingerprintOf(c), true, true})
	}
	if own := a.own[under]; own != nil {
		out = append(out, Certificate{KindControl, own.cert.Leaf, fingerprintOf(own.cert.Leaf), false, false})
	}
	return out
}

// FilesStatus is how the files of a certificate authority of one's own stand.
type FilesStatus struct {
	Waiting bool   // for a rotation
	Refused uint64 // changes that were
	Problem string // of the last change
}

// FilesStatus tells it; false where there are no files.
func (a *Authority) FilesStatus() (FilesStatus, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := &a.files
	return FilesStatus{Waiting: f.offered != nil, Refused: f.refused, Problem: f.problem}, a.cfg.Files.given()
}
