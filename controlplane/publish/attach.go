package publish

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

const (
	// storeTimeout bounds one call of a lease, so that a store which does not
	// answer holds up one message of one proxy and no more.
	storeTimeout = 5 * time.Second
	// maxOffered bounds the endpoints, and the addresses, of one proxy.
	maxOffered = 1024
	// A lease is renewed at most ten times within its time to live, however often
	// the proxy speaks.
	renewalsPerTTL = 10
	// Reports of demand come twice a second from every proxy that keeps a limit of
	// the whole mesh. They renew four times in the time to live.
	renewalsWithDemands = 4
)

// attachment is one proxy's attachment stream.
type attachment struct {
	key      proxyKey
	hello    Hello
	lease    Lease
	openedAt time.Time
	end      context.CancelCauseFunc
	wake     chan struct{} // of one place: shares are to be told
	left     bool          // used by the stream's goroutine only: it took leave
	renewed  time.Time     // used by the stream's goroutine only
	failing  bool          // likewise: the last KeepAlive failed

	mu       sync.Mutex // guards what follows; Server.mu is never taken under it
	figures  policy.Figures
	report   policy.Report
	skew     *time.Duration
	lastSeen time.Time
}

type attachStream = grpc.BidiStreamingServer[wire.AttachRequest, wire.AttachResponse]

// Attach serves one proxy's attachment stream.
func (s *Server) Attach(stream attachStream) error {
	service, err := s.identify(stream.Context())
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	requests := make(chan *wire.AttachRequest)
	go receive(ctx, stream.Recv, requests, end)

	first, err := await(ctx, s.closed, requests, nil)
	if err != nil {
		return asStatus(err)
	}
	a, err := s.attach(ctx, service, first, end)
	if err != nil {
		return err
	}
	defer s.detach(a)

	for req := first; ; {
		if req.GetLeaving() {
			a.left = true
			return s.release(ctx, a)
		}
		if err := s.renew(ctx, a, req, stream); err != nil {
			return err
		}
		if req, err = s.next(ctx, a, requests, stream); err != nil {
			return asStatus(err)
		}
		if req.GetHello() != nil {
			return status.Error(codes.InvalidArgument, "hello: only the first message may hold it")
		}
		a.seen(req, s.cfg.Now())
		s.tellDemands(a, req)
		s.tellFlows(a, req)
	}
}

// tellFlows hands what a report has of flows on.
func (s *Server) tellFlows(a *attachment, req *wire.AttachRequest) {
	r := req.GetReport()
	if s.cfg.Flows == nil || len(r.GetFlows()) == 0 && r.GetFlowsLeftOut() == 0 {
		return
	}
	s.cfg.Flows(a.key.name(), r.PolicyFlows(a.key.service), r.GetFlowsLeftOut())
}

// next gives the proxy's next message. Shares that change meanwhile are told: as
// no answer, which shows that the store answers too.
func (s *Server) next(ctx context.Context, a *attachment, requests <-chan *wire.AttachRequest, stream attachStream) (*wire.AttachRequest, error) {
	for {
		req, err := await(ctx, s.closed, requests, a.wake)
		if req != nil || err != nil {
			return req, err
		}
		if err := stream.Send(&wire.AttachResponse{Shares: wire.FromShares(s.cfg.Shares(a.key.name()))}); err != nil {
			return nil, err
		}
	}
}

// tellDemands hands a report's demands on.
func (s *Server) tellDemands(a *attachment, req *wire.AttachRequest) {
	if f := req.GetFigures(); f != nil {
		s.cfg.Demands(a.key.name(), f.PolicyDemands())
	}
}

// attach reads the first message, has the endpoints stored and makes this the
// proxy's attachment. An older one ends and its lease is left to expire: the
// endpoints have a new one.
func (s *Server) attach(ctx context.Context, service policy.ServiceName, req *wire.AttachRequest, end context.CancelCauseFunc) (*attachment, error) {
	hello, err := readHello(service, req.GetHello())
	if err != nil {
		return nil, err
	}
	hello.Control = clip(req.GetReport().GetControl())
	lease, err := s.cfg.Attach(ctx, hello)
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return nil, err
		}
		return nil, status.Errorf(codes.Unavailable, "attach: %v", err)
	}
	now := s.cfg.Now()
	a := &attachment{key: proxyKey{service, hello.ProxyID}, hello: hello, lease: lease, openedAt: now, end: end, renewed: now, wake: make(chan struct{}, 1)}
	a.seen(req, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, errClosing
	}
	if old := s.attachments[a.key]; old != nil {
		old.end(errSuperseded)
	}
	s.attachments[a.key] = a
	s.tellDemands(a, req)
	s.tellFlows(a, req)
	s.cfg.Log.Info("proxy attached", zap.Stringer("service", service), zap.String("proxy", hello.ProxyID),
		zap.String("version", hello.Version), zap.Int("endpoints", len(hello.Endpoints)))
	return a, nil
}

func (s *Server) detach(a *attachment) {
	s.mu.Lock()
	if s.attachments[a.key] == a {
		delete(s.attachments, a.key)
		s.cfg.Detached(a.key.name(), a.left)
	}
	s.mu.Unlock()
	s.cfg.Log.Info("proxy detached", zap.Stringer("service", a.key.service), zap.String("proxy", a.key.id))
}

// release removes the endpoints of a proxy that leaves. Its stream may be gone
// already; the removal is done all the same.
func (s *Server) release(ctx context.Context, a *attachment) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := a.lease.Close(ctx); err != nil {
		s.cfg.Log.Warn("the endpoints of a proxy that left stay until their lease expires",
			zap.Stringer("service", a.key.service), zap.String("proxy", a.key.id), zap.Error(err))
		return status.Errorf(codes.Unavailable, "remove the endpoints: %v", err)
	}
	return nil
}

// renew keeps the lease alive and answers. A store that does not answer now may
// do so at the next message: the stream stays, and so does the proxy's traffic;
// only the answer is missing.
func (s *Server) renew(ctx context.Context, a *attachment, req *wire.AttachRequest, stream attachStream) error {
	ttl := a.lease.TTL()
	every := ttl / renewalsPerTTL
	if len(req.GetFigures().GetDemands()) > 0 {
		every = ttl / renewalsWithDemands
	}
	if now := s.cfg.Now(); a.failing || now.Sub(a.renewed) >= every {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		err := a.lease.KeepAlive(ctx)
		cancel()
		if errors.Is(err, ErrLeaseLost) {
			return status.Errorf(codes.Unavailable, "keep the endpoints alive: %v; attach again", err)
		}
		if err != nil {
			if !a.failing {
				s.cfg.Log.Warn("a proxy's lease cannot be renewed", zap.Stringer("service", a.key.service),
					zap.String("proxy", a.key.id), zap.Error(err))
			}
			a.failing = true
			return nil
		}
		a.failing, a.renewed = false, now
	}
	return stream.Send(&wire.AttachResponse{Ttl: durationpb.New(ttl), Clock: s.cfg.Now().UnixMilli(), Shares: wire.FromShares(s.cfg.Shares(a.key.name()))})
}

// readHello checks a proxy's first message. The error is a gRPC status that
// names the field.
func readHello(service policy.ServiceName, m *wire.Hello) (Hello, error) {
	h := Hello{ProxyID: m.GetProxyId(), Version: clip(m.GetVersion()), Service: service}
	bad := func(format string, args ...any) (Hello, error) {
		return Hello{}, status.Error(codes.InvalidArgument, "hello."+fmt.Sprintf(format, args...))
	}
	if m == nil {
		return Hello{}, status.Error(codes.InvalidArgument, "hello: the first message must hold it")
	}
	if err := checkProxyID(h.ProxyID); err != nil {
		return Hello{}, err
	}
	if n := max(len(m.GetAddresses()), len(m.GetEndpoints())); n > maxOffered {
		return bad("endpoints: %d are more than the %d that one proxy may offer", n, maxOffered)
	}
	for i, b := range m.GetAddresses() {
		ip, ok := netip.AddrFromSlice(b)
		if !ok {
			return bad("addresses[%d]: %d bytes are not an IP address", i, len(b))
		}
		h.Addresses = append(h.Addresses, ip.Unmap())
	}
	ids := map[string]bool{}
	for i, e := range m.GetEndpoints() {
		t := e.Policy(service)
		if p := t.Validate(); len(p) > 0 {
			return bad("%v", p.Under(fmt.Sprintf("endpoints[%d]", i)))
		}
		if ids[t.ID] {
			return bad("endpoints[%d].id: %q is there twice", i, t.ID)
		}
		ids[t.ID] = true
		h.Endpoints = append(h.Endpoints, t)
	}
	return h, nil
}

// seen takes a message's figures in.
func (a *attachment) seen(req *wire.AttachRequest, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastSeen = now
	if f := req.GetFigures(); f != nil {
		a.figures = f.Policy()
	}
	if r := req.GetReport(); r != nil {
		a.report = r.Policy()
		a.report.Control = clip(a.report.Control)
		if at := a.report.Clock; !at.IsZero() {
			skew := at.Sub(now.Round(0)) // by the wall; what the message took is in it, too
			a.skew = &skew
		}
	}
}

func (a *attachment) lastFigures() policy.Figures {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.figures
}

func (a *attachment) describe(p *ProxyStatus) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.Attached, p.Version, p.Addresses, p.Figures = true, a.hello.Version, a.hello.Addresses, a.figures
	p.Report, p.ClockSkew = a.report, a.skew
	p.opened(a.openedAt, a.lastSeen)
}
