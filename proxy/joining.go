package proxy

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/identity"
	"github.com/weir-mesh/weir/proxy/spire"
)

// Joining is by what a sidecar gets its identity, if not by a join token.
type Joining struct {
	AccountTokenFile string // token of a Kubernetes service account; "" is none
	ControlCAFile    string // the control plane's roots, PEM; needed with AccountTokenFile
	SpireSocket      string // Workload API that gives the identity; "" is none
	SPIFFETemplate   string // how its IDs name services; "" is policy.DefaultIDTemplate
}

// source gives who brings the identity, nil where the control plane does.
func (j *Joining) source(name policy.ServiceName, log *zap.Logger) (identity.Follow, policy.IDTemplate, error) {
	if j.SpireSocket == "" {
		return nil, "", nil
	}
	if err := spire.Check(j.SpireSocket); err != nil {
		return nil, "", err
	}
	ids := policy.DefaultIDTemplate
	if j.SPIFFETemplate != "" {
		var err error
		if ids, err = policy.ParseIDTemplate(j.SPIFFETemplate); err != nil {
			return nil, "", err
		}
	}
	cfg := spire.Config{Socket: j.SpireSocket, Log: log, Want: func(id spiffeid.ID) error {
		got, err := ids.Parse(id.Path())
		if err == nil && got != name {
			err = fmt.Errorf("it is %s, not %s", got, name)
		}
		return err
	}}
	return func(ctx context.Context, take func([]*x509.Certificate, crypto.Signer, []*x509.Certificate) error) error {
		return spire.Follow(ctx, cfg, take)
	}, ids, nil
}
