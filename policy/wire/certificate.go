package wire

import (
	"fmt"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func fromRevocations(list []policy.Revocation) []*Revocation {
	var out []*Revocation
	for i := range list {
		m := &Revocation{Serial: list[i].Serial}
		if m.Serial == "" {
			m.Identity = FromName(list[i].Identity)
		}
		out = append(out, m)
	}
	return out
}

// revocationsOf refuses a list as a whole: a proxy that passed over what it cannot
// read would trust what others do not.
func revocationsOf(list []*Revocation) ([]policy.Revocation, error) {
	if len(list) > policy.MaxRevocations {
		return nil, fmt.Errorf("%d revocations are more than %d", len(list), policy.MaxRevocations)
	}
	var out []policy.Revocation
	for i, m := range list {
		r := policy.Revocation{Serial: m.GetSerial(), Identity: m.GetIdentity().Policy()}
		if p := r.Validate(); len(p) > 0 {
			return nil, fmt.Errorf("%w", p.Under(fmt.Sprintf("revocations[%d]", i)))
		}
		out = append(out, r)
	}
	return out, nil
}

// A proxy's words are bounded before they are kept.
const (
	maxTrustedRoots = 16
	maxWord         = 64 // hex SHA-256
)

func word(s string) string {
	if len(s) > maxWord {
		return ""
	}
	return s
}

func fromCertificate(m *Report, r *policy.Report) {
	m.CertificateSerial, m.CertificateRoot, m.TrustedRoots = r.CertificateSerial, r.CertificateRoot, r.TrustedRoots
	if !r.CertificateBegins.IsZero() {
		m.CertificateBegins = r.CertificateBegins.Unix()
	}
}

func (r *Report) certificate(out *policy.Report) {
	out.CertificateSerial, out.CertificateRoot = word(r.GetCertificateSerial()), word(r.GetCertificateRoot())
	if s := r.GetCertificateBegins(); s != 0 {
		out.CertificateBegins = time.Unix(s, 0)
	}
	for i, root := range r.GetTrustedRoots() {
		if i == maxTrustedRoots {
			break
		}
		out.TrustedRoots = append(out.TrustedRoots, word(root))
	}
}
