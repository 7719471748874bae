package ca

import (
	"context"
	"errors"
	"maps"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// JoinServer is the gRPC service weir.v1.Join, to be registered on a server
// with ServerTLS.
type JoinServer struct {
	wire.UnimplementedJoinServer
	ca *Authority
}

// JoinServer gives the service that hands out this authority's certificates.
func (a *Authority) JoinServer() *JoinServer { return &JoinServer{ca: a} }

// Join turns a join token, or the token of a Kubernetes service account, and a
// request into a certificate. Codes: Unauthenticated for the token,
// InvalidArgument for the request.
func (j *JoinServer) Join(ctx context.Context, req *wire.JoinRequest) (*wire.JoinResponse, error) {
	name, family, err := j.ca.admit(ctx, req)
	if err != nil {
		return nil, j.refuse(ctx, "join", name, err)
	}
	return j.issue(ctx, "join", name, req.GetCsr(), family)
}

// Renew turns a caller's present identity and a request into a certificate.
// Codes: Unauthenticated for the present certificate, InvalidArgument for the
// request, PermissionDenied for a name that cannot renew.
func (j *JoinServer) Renew(ctx context.Context, req *wire.RenewRequest) (*wire.JoinResponse, error) {
	name, leaf, err := j.ca.peer(ctx)
	if err != nil {
		return nil, j.refuse(ctx, "renew", name, err)
	}
	return j.issue(ctx, "renew", name, req.GetCsr(), familyOf(leaf.SerialNumber))
}

func (j *JoinServer) issue(ctx context.Context, step string, name policy.ServiceName, csr []byte, family uint64) (*wire.JoinResponse, error) {
	cert, err := j.ca.issue(name, csr, family)
	if err != nil {
		return nil, j.refuse(ctx, step, name, err)
	}
	return &wire.JoinResponse{Certificate: cert, Bundle: j.ca.Bundle(), TrustDomain: j.ca.TrustDomain(), Clock: j.ca.cfg.Now().UnixMilli()}, nil
}

// refuse logs a refusal, with its reason and never what was shown, and makes
// the answer. What is our own fault is not told to the caller in detail.
func (j *JoinServer) refuse(ctx context.Context, step string, name policy.ServiceName, err error) error {
	from := "unknown"
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = p.Addr.String()
	}
	log := j.ca.cfg.Log.With(zap.String("step", step), zap.String("from", from), zap.Stringer("service", name), zap.Error(err))
	code := codeOf(err)
	if code == codes.Internal {
		log.Error("a certificate could not be issued")
		return status.Error(code, "the certificate could not be issued; the control plane's log tells why")
	}
	j.ca.count(err)
	log.Warn("a certificate was refused")
	return status.Error(code, err.Error())
}

// reasons are the words under which refusals are counted.
var reasons = []struct {
	err  error
	word string
}{
	{ErrRevoked, "revoked"}, {ErrTokenMalformed, "token-malformed"}, {ErrTokenSignature, "token-signature"}, {ErrTokenExpired, "token-expired"},
	{ErrTokenDomain, "token-domain"}, {ErrTokenUsedUp, "token-used-up"}, {ErrTokenRevoked, "token-revoked"},
	{ErrTokenUnknown, "token-unknown"}, {ErrTokenService, "token-service"}, {ErrKubernetes, "kubernetes"},
	{ErrPeer, "certificate"}, {ErrCSR, "request"}, {ErrName, "name"},
}

func (a *Authority) count(err error) {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.refused[r.word]++
			return
		}
	}
}

// Refused counts the certificates that were asked for and refused since New,
// by reason: token-malformed, token-signature, token-expired, token-domain,
// token-used-up, token-revoked, token-unknown, token-service, kubernetes,
// certificate, request, name and revoked.
func (a *Authority) Refused() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.refused)
}

func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, ErrToken), errors.Is(err, ErrPeer), errors.Is(err, ErrRevoked):
		return codes.Unauthenticated
	case errors.Is(err, ErrCSR):
		return codes.InvalidArgument
	case errors.Is(err, ErrName):
		return codes.PermissionDenied
	default:
		return codes.Internal
	}
}
