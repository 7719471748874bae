package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// Tokens keeps what is known of the join tokens that were given out, for all
// control planes of the mesh.
type Tokens interface {
	AddToken(ctx context.Context, t policy.JoinToken) error
	// UseToken counts a use by who asks; joined is false where the token is revoked
	// or its uses are used up. policy.ErrNotFound: nothing is known of the token.
	UseToken(ctx context.Context, id, by string) (t policy.JoinToken, joined bool, err error)
}

// Why a token that is ours is refused all the same, and one of Kubernetes.
var (
	ErrTokenUsedUp  = fmt.Errorf("%w: used up", ErrToken)
	ErrTokenRevoked = fmt.Errorf("%w: revoked", ErrToken)
	// ErrTokenUnknown says that there is no record of a token that should have one:
	// whether it was revoked cannot be told, so it opens nothing.
	ErrTokenUnknown = fmt.Errorf("%w: there is no record of it", ErrToken)
	ErrTokenService = fmt.Errorf("%w: of another service", ErrToken)
	// ErrKubernetes says that the token of a Kubernetes service account opens
	// nothing here.
	ErrKubernetes = fmt.Errorf("%w of Kubernetes", ErrToken)
)

// CreateToken makes a join token and keeps a record of it: proxies of a service
// can join with it until it expires (ttl 0 is DefaultTokenTTL), or until so many
// have (uses 0 is any number), or it is revoked. The text is the token itself, a
// secret that is not kept. It names the root that signs now, or that is to sign after a
// rotation that is under way: when that root is trusted no more, the token is of no
// use. Errors wrap ErrName or ErrRevoked, or say what is wrong with ttl or uses.
func (a *Authority) CreateToken(ctx context.Context, name policy.ServiceName, ttl time.Duration, uses int) (t policy.JoinToken, text string, err error) {
	if uses < 0 || uses > policy.MaxTokenUses {
		return t, "", fmt.Errorf("uses of a token: %d is not in 0..%d", uses, policy.MaxTokenUses)
	}
	id := strings.ToLower(rand.Text()[:12]) // 60 bits: it is a name, not the secret
	text, expires, err := a.signToken(name, ttl, id)
	if err != nil {
		return t, "", err
	}
	t = policy.JoinToken{ID: id, Service: name, Created: a.cfg.Now().Truncate(time.Second), Expires: expires, Uses: uses}
	if a.cfg.Tokens == nil {
		return t, "", errors.New("token: there is nothing to keep a record in")
	}
	if err := a.cfg.Tokens.AddToken(ctx, t); err != nil {
		return t, "", fmt.Errorf("token for %s: %w", name, err)
	}
	return t, text, nil
}

// admit tells for which service a caller may have a certificate, and of which
// family, 0 for none. A use of a token is counted last, when everything else is right.
func (a *Authority) admit(ctx context.Context, req *wire.JoinRequest) (name policy.ServiceName, family uint64, err error) {
	if req.GetKubernetesToken() != "" {
		name, err = a.admitAccount(ctx, req)
		return name, 0, err
	}
	c, err := a.readToken(req.GetToken())
	if err != nil {
		return policy.ServiceName{}, 0, err
	}
	name, family = policy.ServiceName{Namespace: c.Namespace, Name: c.Service}, a.family(c.Nonce)
	if err := a.checkFamily(name, family); err != nil {
		return name, 0, err
	}
	key, err := a.keyOf(name, req.GetCsr())
	if errors.Is(err, errAnother) {
		err = fmt.Errorf("%w: %w", ErrTokenService, err)
	}
	if err != nil {
		return name, 0, err
	}
	if c.ID == "" { // made by a version that kept no record
		return name, family, nil
	}
	// Who shows a certificate of the same name that holds has joined before.
	if peer, err := a.Peer(ctx); err == nil && peer == name {
		return name, family, nil
	}
	return name, family, a.useToken(ctx, c.ID, key)
}

// useToken counts a use by the owner of a key: one whose answer was lost comes
// again with the same.
func (a *Authority) useToken(ctx context.Context, id string, key crypto.PublicKey) error {
	if a.cfg.Tokens == nil {
		return ErrTokenUnknown
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	sum := sha256.Sum256(der)
	t, joined, err := a.cfg.Tokens.UseToken(ctx, id, hex.EncodeToString(sum[:16]))
	switch {
	case errors.Is(err, policy.ErrNotFound):
		return fmt.Errorf("%w (%s)", ErrTokenUnknown, id)
	case err != nil:
		return err
	case !t.Revoked.IsZero():
		return fmt.Errorf("%w at %s (%s)", ErrTokenRevoked, t.Revoked.UTC().Format(time.RFC3339), id)
	case !joined:
		return fmt.Errorf("%w by %d of %d (%s)", ErrTokenUsedUp, t.Used, t.Uses, id)
	}
	return nil
}

func (a *Authority) admitAccount(ctx context.Context, req *wire.JoinRequest) (policy.ServiceName, error) {
	want := policy.ServiceName{Namespace: req.GetService().GetNamespace(), Name: req.GetService().GetName()}
	if err := checkName(want); err != nil {
		return policy.ServiceName{}, err
	}
	if err := a.checkIdentity(want); err != nil {
		return want, err
	}
	if a.cfg.Account == nil {
		return want, fmt.Errorf("%w: this control plane takes none (weir control --kubernetes-join)", ErrKubernetes)
	}
	return want, a.cfg.Account(ctx, req.GetKubernetesToken(), want)
}
