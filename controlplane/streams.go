package controlplane

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/controlplane/ca"
	"github.com/weir-mesh/weir/policy"
)

// streams are the open streams of proxies, to be cut when one is revoked.
type streams struct {
	mu   sync.Mutex // guards what follows
	open map[*stream]struct{}
}

// stream is one, whose context ends when it is cut.
type stream struct {
	grpc.ServerStream
	ctx context.Context
	cut context.CancelCauseFunc
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

var errRevoked = status.Error(codes.PermissionDenied, "the certificate or the identity was revoked")

// watch is a grpc.StreamServerInterceptor.
func (s *streams) watch(srv any, below grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cut := context.WithCancelCause(below.Context())
	defer cut(nil)
	st := &stream{below, ctx, cut}
	s.mu.Lock()
	if s.open == nil {
		s.open = map[*stream]struct{}{}
	}
	s.open[st] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.open, st)
		s.mu.Unlock()
	}()
	err := handle(srv, st)
	if cause := context.Cause(ctx); cause == errRevoked { //nolint:errorlint // it is that value
		return errRevoked
	}
	return err
}

// identifier tells who is at the other end of a stream, as things are now.
type identifier interface {
	Peer(ctx context.Context) (policy.ServiceName, error)
}

// recheck cuts the streams whose peers have been revoked, and says how many. One whose
// certificate has ended since stays: it was renewed, on another connection.
func (s *streams) recheck(who identifier) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for st := range s.open {
		if _, err := who.Peer(st.ctx); errors.Is(err, ca.ErrRevoked) {
			st.cut(errRevoked)
			n++
		}
	}
	return n
}
