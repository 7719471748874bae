package ca

import (
	"context"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// stored is what a store keeps of the roots.
type stored struct {
	t *testing.T
	a *Authority
}

func (s *stored) put(known policy.Roots) {
	s.t.Helper()
	known.Revision++
	if _, err := s.a.Use(context.Background(), known); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stored) begin() policy.Roots {
	s.t.Helper()
	next, err := s.a.Begin(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	s.put(next)
	return next
}

func roots(t *testing.T, a *Authority) (fingerprints []string) {
	t.Helper()
	certs, err := parseChain(a.Bundle())
	must(t, err)
	for _, c := range certs {
		fingerprints = append(fingerprints, fingerprintOf(c))
	}
	return fingerprints
}

func TestARotationWalksItsStages(t *testing.T) {
	a, at := newAuthority(t)
	s := &stored{t, a}
	old := a.SigningRoot()
	r := s.begin().Rotation
	if got := roots(t, a); len(got) != 2 || got[0] != old || got[1] != r.New || a.SigningRoot() != old {
		t.Fatalf("in trust: roots %v, %s signs", got, a.SigningRoot())
	}
	if _, err := a.Begin(context.Background()); !errors.Is(err, ErrRotation) {
		t.Errorf("a second one: %v", err)
	}
	s.put(Advance(a.Known(), nil, at.Now()))
	if got := roots(t, a); len(got) != 2 || a.SigningRoot() != r.New {
		t.Fatalf("in reissue: roots %v, %s signs", got, a.SigningRoot())
	}
	s.put(Advance(a.Known(), []string{"p1"}, at.Now()))
	if got := roots(t, a); len(got) != 1 || got[0] != r.New || a.SigningRoot() != r.New {
		t.Fatalf("done: roots %v, %s signs", got, a.SigningRoot())
	}
	if left := a.Known().Rotation.Left; len(left) != 1 || left[0] != "p1" {
		t.Errorf("left behind: %v", left)
	}
	// Another control plane that starts now comes to the same.
	b, err := New(context.Background(), Config{TrustDomain: "weir.local", Keep: a.cfg.Keep, Now: at.Now, Roots: a.Known()})
	must(t, err)
	if string(b.Bundle()) != string(a.Bundle()) {
		t.Error("another has other roots")
	}
	// By age it goes on from the new one: it has a successor in time.
	at.Add(RootTTL - successorBefore)
	_, err = a.Rotate(context.Background())
	must(t, err)
	if got := roots(t, a); len(got) != 2 || got[0] != r.New {
		t.Errorf("after its time: roots %v", got)
	}
	// And once more by order: both of those go.
	again := s.begin().Rotation
	if again.Number != 2 || len(again.Old) != 2 {
		t.Errorf("the second rotation is %+v", again)
	}
	s.put(Advance(a.Known(), nil, at.Now()))
	s.put(Advance(a.Known(), nil, at.Now()))
	if got := roots(t, a); len(got) != 1 || got[0] != again.New {
		t.Errorf("after the second: roots %v", got)
	}
}

func TestARotationIsTakenBackInEitherStage(t *testing.T) {
	for _, stage := range []string{policy.StageTrust, policy.StageReissue} {
		a, at := newAuthority(t)
		s := &stored{t, a}
		old := a.SigningRoot()
		s.begin()
		if stage == policy.StageReissue {
			s.put(Advance(a.Known(), nil, at.Now()))
		}
		next, err := Abort(a.Known(), at.Now())
		must(t, err)
		s.put(next)
		if a.SigningRoot() != old {
			t.Errorf("%s: %s signs", stage, a.SigningRoot())
		}
		if stage == policy.StageReissue { // who renewed under the new one does so under the old
			if got := roots(t, a); len(got) != 2 {
				t.Errorf("roots %v: the new one is dropped before anybody renewed", got)
			}
			s.put(Advance(a.Known(), nil, at.Now()))
		}
		if got := roots(t, a); len(got) != 1 || got[0] != old || a.SigningRoot() != old {
			t.Errorf("%s: roots %v, %s signs", stage, got, a.SigningRoot())
		}
		if _, err := Abort(a.Known(), at.Now()); !errors.Is(err, ErrRotation) {
			t.Errorf("%s: once more: %v", stage, err)
		}
		if next, err := a.Begin(context.Background()); err != nil || next.Rotation.New == old {
			t.Errorf("%s: another rotation: %v", stage, err)
		}
	}
}

// A token names one root; while two are trusted the control plane shows a
// certificate under that one.
func TestATokenOfEitherRootFindsTheControlPlaneDuringARotation(t *testing.T) {
	a, at := newAuthority(t)
	s := &stored{t, a}
	old := a.SigningRoot()
	now := s.begin().Rotation.New
	for _, stage := range []string{policy.StageTrust, policy.StageReissue} {
		for _, fp := range []string{old, now} {
			own, err := a.ownCertificate(FirstContact(fp))
			must(t, err)
			certs, err := parseChain(pemOf(own.Certificate))
			must(t, err)
			if got := fingerprintOf(certs[len(certs)-1]); got != fp || certs[0].CheckSignatureFrom(certs[len(certs)-1]) != nil {
				t.Errorf("%s: shown is a certificate under %s, not %s", stage, got, fp)
			}
		}
		if i, err := a.lasting(); err != nil || i.root.fingerprint() != now {
			t.Errorf("%s: tokens name another root than the one that stays: %v", stage, err)
		}
		s.put(Advance(a.Known(), nil, at.Now()))
	}
	own, err := a.ownCertificate(FirstContact(old)) // which is gone: the present one is shown
	must(t, err)
	certs, err := parseChain(pemOf(own.Certificate))
	must(t, err)
	if fingerprintOf(certs[len(certs)-1]) != now {
		t.Error("shown is a certificate under a root that is trusted no more")
	}
}

func TestWhoHasFollowed(t *testing.T) {
	r := &policy.Rotation{Stage: policy.StageTrust, New: "new", Old: []string{"older", "old"}}
	for _, c := range []struct {
		stage  string
		report policy.Report
		behind bool
	}{
		{policy.StageTrust, policy.Report{}, true},
		{policy.StageTrust, policy.Report{TrustedRoots: []string{"old"}}, true},
		{policy.StageTrust, policy.Report{TrustedRoots: []string{"old", "new"}, CertificateRoot: "old"}, false},
		{policy.StageReissue, policy.Report{TrustedRoots: []string{"old", "new"}, CertificateRoot: "old"}, true},
		{policy.StageReissue, policy.Report{CertificateRoot: "new"}, false},
		{policy.StageReissue, policy.Report{}, true},
		{policy.StageReissue, policy.Report{CertificateRoot: "SPIRE's"}, false},
	} {
		if r.Stage = c.stage; (Behind(r, &c.report) != "") != c.behind {
			t.Errorf("%s, %+v: %q", c.stage, c.report, Behind(r, &c.report))
		}
	}
}

func TestWhatIsRevokedGetsNothing(t *testing.T) {
	a, _ := newAuthority(t)
	token, _, err := a.NewToken(cart, time.Hour)
	must(t, err)
	other, _, err := a.NewToken(cart, time.Hour)
	must(t, err)
	said, err := a.readToken(token)
	must(t, err)
	chain, err := a.issue(cart, newCSR(t, noWish(), nil), a.family(said.Nonce))
	must(t, err)
	serial := serialOf(parse(t, chain))
	// A certificate takes the token with it that it was got by, and no other.
	a.SetRevoked([]policy.Revocation{{Serial: serial}})
	if _, err := a.CheckToken(token); !errors.Is(err, ErrRevoked) {
		t.Errorf("the token it was got by: %v", err)
	}
	if _, err := a.CheckToken(other); err != nil {
		t.Errorf("another token: %v", err)
	}
	if err := a.checkCertificate(cart, parse(t, chain)); !errors.Is(err, ErrRevoked) {
		t.Errorf("the certificate: %v", err)
	}
	// An identity takes everything.
	a.SetRevoked([]policy.Revocation{{Identity: cart}})
	for step, try := range map[string]func() error{
		"a token":        func() error { _, err := a.CheckToken(other); return err },
		"a new token":    func() error { _, _, err := a.NewToken(cart, time.Hour); return err },
		"a request":      func() error { _, err := a.IssueForCSR(cart, newCSR(t, noWish(), nil)); return err },
		"a key":          func() error { _, _, err := a.IssueWithKey(cart); return err },
		"a certificate":  func() error { return a.checkCertificate(cart, parse(t, chain)) },
		"the very token": func() error { _, err := a.CheckToken(token); return err },
	} {
		if err := try(); !errors.Is(err, ErrRevoked) {
			t.Errorf("%s: %v", step, err)
		}
	}
	a.SetRevoked(nil)
	if _, err := a.CheckToken(token); err != nil {
		t.Errorf("when lifted: %v", err)
	}
}

func TestASerialNumberKeepsItsFamily(t *testing.T) {
	seen := map[string]bool{}
	for _, family := range []uint64{asFamily([]byte{0, 0, 0, 0, 0, 0, 0, 0}), asFamily([]byte{255, 255, 255, 255, 255, 255, 255, 255}), 0} {
		for range 50 {
			n, err := newSerial(family)
			must(t, err)
			if n.Sign() <= 0 || n.BitLen() > 127 || family != 0 && familyOf(n) != family || seen[n.String()] {
				t.Fatalf("%x of the family %x", n, family)
			}
			seen[n.String()] = true
		}
	}
	if familyOf(big.NewInt(7)) != 0 {
		t.Error("a small number has a family")
	}
}
