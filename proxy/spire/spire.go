// Package spire follows a workload's identities at a SPIFFE Workload API, such as a SPIRE agent's.
// What is done with them is left to its user. It is the only user of go-spiffe's client of that API.
package spire

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/zap"
)

// Config says whom to ask for what.
type Config struct {
	// Socket is where the API is: a path, or unix:///path or tcp://address:port.
	Socket string
	// Want chooses among the identities that the workload has: the first for which
	// it gives no error.
	Want func(spiffeid.ID) error
	Log  *zap.Logger
}

// Check tells what is wrong with the address of a socket.
func Check(socket string) error {
	if err := workloadapi.ValidateAddress(address(socket)); err != nil {
		return fmt.Errorf("address of the Workload API %q: %w; meant is such as /run/spire/sockets/agent.sock", socket, err)
	}
	return nil
}

func address(socket string) string {
	if strings.Contains(socket, "://") {
		return socket
	}
	return "unix://" + socket
}

// Follow calls take with the identity that is wanted and the roots of its trust
// domain, now and each time that one of them changes, until ctx ends. While the
// API is away, or has no such identity, it tries again and says so in the log. An
// error of take is logged: what was taken before stays.
func Follow(ctx context.Context, cfg Config, take func(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate) error) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address(cfg.Socket)))
	if err != nil {
		return fmt.Errorf("Workload API at %s: %w", cfg.Socket, err)
	}
	defer func() { _ = client.Close() }()
	err = client.WatchX509Context(ctx, &watcher{cfg: cfg, take: take})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("Workload API at %s: %w", cfg.Socket, err)
}

type watcher struct {
	cfg  Config
	take func([]*x509.Certificate, crypto.Signer, []*x509.Certificate) error
	last string // that was logged
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	if err := w.update(c); err != nil {
		w.cfg.Log.Warn("the Workload API's identity is not taken; what we had stays", zap.Error(err))
		return
	}
	w.last = ""
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextWatchError(err error) {
	if text := err.Error(); text != w.last && !errors.Is(err, context.Canceled) {
		w.last = text
		w.cfg.Log.Warn("the Workload API does not answer with an identity; trying again", zap.String("socket", w.cfg.Socket), zap.Error(err))
	}
}

func (w *watcher) update(c *workloadapi.X509Context) error {
	var others []error
	for _, svid := range c.SVIDs {
		if err := w.cfg.Want(svid.ID); err != nil {
			others = append(others, fmt.Errorf("%s: %w", svid.ID, err))
			continue
		}
		bundle, err := c.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return fmt.Errorf("roots of %s: %w", svid.ID, err)
		}
		return w.take(svid.Certificates, svid.PrivateKey, bundle.X509Authorities())
	}
	return fmt.Errorf("none of the workload's identities is the one wanted: %w", errors.Join(others...))
}
