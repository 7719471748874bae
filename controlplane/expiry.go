package controlplane

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/ca"
)

// defaultAlarm is the part of a certificate's lifetime below which it needs
// attention: workloads renew at a half, so one at a third was not renewed.
const defaultAlarm = 1.0 / 3

// CA implements api.Trust.
func (p *plane) CA() api.CA {
	out := api.CA{
		TrustDomain: p.ca.TrustDomain(), Certificates: p.certificates(time.Now()),
		Alarm: cmp.Or(p.cfg.CertificateAlarm, defaultAlarm), Sealed: p.cfg.KeyEncryptionFile != "",
	}
	if f, ok := p.ca.FilesStatus(); ok {
		out.Files = &api.CAFiles{Path: p.cfg.CACertFile, State: "in-force", Refused: f.Refused, Problem: f.Problem}
		if f.Waiting {
			out.Files.State = "waiting"
		}
	}
	if r := p.store.State().Roots.Rotation; r != nil {
		out.Rotation = p.rotationView(r)
	}
	return out
}

// certificates lists those above the leaves, and the control plane's own. A root
// that ends needs no attention where another is trusted that does not.
func (p *plane) certificates(now time.Time) []api.Certified {
	alarm := cmp.Or(p.cfg.CertificateAlarm, defaultAlarm)
	var out []api.Certified
	successor := false
	for _, c := range p.ca.Certificates() {
		sum := sha256.Sum256(c.Cert.Raw)
		v := api.Certified{
			Kind: c.Kind, Name: c.Cert.Subject.String(), Fingerprint: c.Fingerprint, SHA256: hex.EncodeToString(sum[:]), Serial: c.Cert.SerialNumber.Text(16),
			Begins: unix(c.Cert.NotBefore), Expires: unix(c.Cert.NotAfter), Signs: c.Signs, Trusted: c.Kind == ca.KindRoot,
		}
		v.Attention = c.Needed && endsSoon(c.Cert, now, alarm)
		successor = successor || c.Kind == ca.KindRoot && !endsSoon(c.Cert, now, alarm)
		out = append(out, v)
	}
	for i := range out {
		if out[i].Kind == ca.KindRoot && successor {
			out[i].Attention = false
		}
	}
	return out
}

func endsSoon(c *x509.Certificate, now time.Time, part float64) bool {
	return float64(c.NotAfter.Sub(now)) < part*float64(c.NotAfter.Sub(c.NotBefore))
}

// addCertificates adds to the figures when certificates end: of the leaves that of
// the proxy whose is the first to.
func (p *plane) addCertificates(m *api.ControlMetrics) {
	now := time.Now()
	m.Certificates = append([]api.Certified{}, p.certificates(now)...)
	alarm := cmp.Or(p.cfg.CertificateAlarm, defaultAlarm)
	var first *api.Certified
	known := p.pub.Proxies()
	for i := range known {
		r := &known[i].Report
		if r.CertificateExpires.IsZero() || first != nil && unix(r.CertificateExpires) >= first.Expires {
			continue
		}
		first = &api.Certified{
			Kind: api.KindLeaf, Name: known[i].ID, Serial: r.CertificateSerial, Begins: unix(r.CertificateBegins), Expires: unix(r.CertificateExpires),
			Attention: float64(r.CertificateExpires.Sub(now)) < alarm*float64(r.CertificateExpires.Sub(r.CertificateBegins)),
		}
	}
	if first != nil {
		m.Certificates = append(m.Certificates, *first)
	}
	m.Revocations = len(p.store.State().Revoked)
	if f, ok := p.ca.FilesStatus(); ok {
		m.RefusedFiles = f.Refused
	}
}

const (
	expiryEvery = time.Minute    // between two looks at what ends
	toldAgain   = 24 * time.Hour // before the same is said again
)

// watchExpiry warns of certificates of which little is left.
func (p *plane) watchExpiry(ctx context.Context) {
	tick := time.NewTicker(expiryEvery)
	defer tick.Stop()
	told := map[string]time.Time{}
	for {
		now := time.Now()
		for _, c := range p.certificates(now) {
			if c.Attention && now.Sub(told[c.SHA256]) >= toldAgain {
				told[c.SHA256] = now
				p.log.Warn("a certificate ends soon, and nothing takes its place", zap.String("kind", c.Kind), zap.String("name", c.Name),
					zap.String("serial", c.Serial), zap.Time("ends", time.UnixMilli(int64(c.Expires*1000))))
			}
		}
		for sum, at := range told {
			if now.Sub(at) > 2*toldAgain {
				delete(told, sum)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
