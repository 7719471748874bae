package ca

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Known gives what this authority takes the roots to be, to be stored where the
// store has nothing yet.
func (a *Authority) Known() policy.Roots {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.known.Clone()
}

// Begin makes the root that is to come, where it is the mesh's own, and gives what
// is to be stored for a rotation to begin: old and new trusted, the old signing.
// Errors that wrap ErrRotation say why there can be none now.
func (a *Authority) Begin(ctx context.Context) (policy.Roots, error) {
	a.turn.Lock()
	defer a.turn.Unlock()
	a.mu.Lock()
	known, offered, now := a.known.Clone(), a.files.offered, a.cfg.Now()
	trusted := a.trustedLocked()
	signer, err := a.signerLocked(now)
	a.mu.Unlock()
	if err != nil {
		return known, fmt.Errorf("%w: %w", ErrRotation, err)
	}
	if known.Rotation.Running() {
		return known, fmt.Errorf("%w: number %d is under way, in the stage %s", ErrRotation, known.Rotation.Number, known.Rotation.Stage)
	}
	r := &policy.Rotation{Number: 1, Stage: policy.StageTrust, Started: seconds(now), Since: seconds(now)}
	if known.Rotation != nil {
		r.Number = known.Rotation.Number + 1
	}
	for _, t := range trusted {
		r.Old = append(r.Old, t.fingerprint())
		if t.n > 0 {
			r.Wanted = append(r.Wanted, t.n)
		}
		known.Made = max(known.Made, t.n)
	}
	switch {
	case offered != nil:
		r.New = offered.root.fingerprint()
		known.Foreign = append(known.Foreign, string(offered.root.pem))
	case signer.root.n == 0:
		return known, fmt.Errorf("%w: certificates are signed by the files of --ca-cert; put the certificate and key of another root in their place first, then rotate", ErrRotation)
	default:
		known.Made++
		fresh, err := a.madeRoot(ctx, known.Made)
		if err != nil {
			return known, err
		}
		r.New, r.Made = fresh.fingerprint(), known.Made
	}
	known.Signs, known.Rotation = signer.root.fingerprint(), r
	return known, nil
}

// Advance gives what is to be stored for a rotation's next stage. left are proxies
// that have not followed.
func Advance(known policy.Roots, left []string, now time.Time) policy.Roots {
	known = known.Clone()
	r := known.Rotation
	r.Since, r.Left = seconds(now), append(r.Left, left...)
	switch r.Stage {
	case policy.StageTrust:
		r.Stage, known.Signs = policy.StageReissue, r.New
	case policy.StageReissue:
		r.Stage = policy.StageDone
		known.Retired = append(known.Retired, r.Wanted...)
		known.Foreign = without(known.Foreign, r.Old)
		if r.Made > 0 {
			known.Signs = "" // by age again, of those that are left
		}
	}
	return known
}

// Abort gives what is to be stored for a rotation to be taken back. Once the new
// root has signed, proxies are to renew under the old before the new goes: that is a
// rotation the other way, which begins with its second stage.
func Abort(known policy.Roots, now time.Time) (policy.Roots, error) {
	known = known.Clone()
	r := known.Rotation
	switch {
	case !r.Running():
		return known, fmt.Errorf("%w: none is under way", ErrRotation)
	case r.Stage == policy.StageTrust:
		return abortTrust(known, now), nil
	default:
		return turnRound(known, now), nil
	}
}

// abortTrust drops the new root, which has signed nothing.
func abortTrust(known policy.Roots, now time.Time) policy.Roots {
	r := known.Rotation
	r.Stage, r.Since = policy.StageAborted, seconds(now)
	if r.Made > 0 {
		known.Retired = append(known.Retired, r.Made)
	} else {
		known.Foreign = without(known.Foreign, []string{r.New})
	}
	if len(r.Wanted) > 0 && slices.Contains(r.Old, known.Signs) && len(r.Wanted) == len(r.Old) {
		known.Signs = "" // by age, as before
	}
	return known
}

// turnRound goes back to the trust of both with the old signing: proxies renew under
// it, and then the new is dropped as an old one is.
func turnRound(known policy.Roots, now time.Time) policy.Roots {
	r := known.Rotation
	back := &policy.Rotation{
		Number: r.Number + 1, Stage: policy.StageReissue, Old: []string{r.New}, New: r.Old[len(r.Old)-1],
		Started: seconds(now), Since: seconds(now),
	}
	if r.Made > 0 {
		back.Wanted = []int{r.Made}
	}
	if n := len(r.Wanted); n == len(r.Old) {
		back.Made = r.Wanted[n-1]
	}
	known.Signs, known.Rotation = back.New, back
	return known
}

func without(pems []string, fingerprints []string) []string {
	return slices.DeleteFunc(pems, func(text string) bool {
		certs, err := parseChain([]byte(text))
		return err == nil && slices.Contains(fingerprints, fingerprintOf(certs[0]))
	})
}

// Behind tells why a proxy that trusts some roots and has a certificate under one of
// them has not followed a rotation yet; "" when it has.
func Behind(r *policy.Rotation, report *policy.Report) string {
	switch r.Stage {
	case policy.StageTrust:
		if !slices.Contains(report.TrustedRoots, r.New) {
			return "does not trust the new root yet"
		}
	case policy.StageReissue:
		// One under a root of somebody else, as SPIRE's, does not depend on ours.
		if root := report.CertificateRoot; root == "" || root != r.New && slices.Contains(r.Old, root) {
			return "has a certificate under an old root still"
		}
	}
	return ""
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
