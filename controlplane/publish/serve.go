package publish

import (
	"context"
	"errors"
	"io"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
)

// How the control plane itself ends a stream.
var (
	errRevoked    = status.Error(codes.PermissionDenied, "the identity is not accepted any more")
	errSuperseded = status.Error(codes.Aborted, "a newer stream of the same proxy took this one's place")
	errClosing    = status.Error(codes.Unavailable, "the control plane is shutting down")
)

// DeltaAggregatedResources serves one proxy's discovery stream. This goroutine
// sends; another takes in what the proxy says, so that an ACK, of which there is
// one for each change, wakes nobody else. A proxy that does not read blocks this
// goroutine in Send and nothing else; what changes meanwhile is sent once, as it
// is then.
func (s *Server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	service, err := s.identify(stream.Context())
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	opened := make(chan *session, 1)
	go func() {
		end(s.listen(service, stream.Recv, opened, end))
	}()
	ses, err := await(ctx, s.closed, opened, nil)
	if err != nil {
		return asStatus(err)
	}
	for {
		held, err := s.flush(ses, stream.Send)
		if err != nil {
			return err
		}
		if err := s.rest(ctx, ses, held); err != nil {
			return asStatus(err)
		}
	}
}

// rest returns when a session has something to look at: at once when it is woken,
// or after the time for which changes are held, where that is not 0.
func (s *Server) rest(ctx context.Context, ses *session, held time.Duration) error {
	if held == 0 {
		_, err := await[session](ctx, s.closed, nil, ses.wake)
		return err
	}
	timer := time.NewTimer(held)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.closed:
		return errClosing
	case <-ses.wake:
	case <-timer.C:
	}
	return nil
}

// listen opens a session with a stream's first message and takes in all that
// follow, until one is refused or the stream ends, which it does when its handler
// has returned. What the session followed is let go then.
func (s *Server) listen(service policy.ServiceName, recv func() (*discovery.DeltaDiscoveryRequest, error), opened chan<- *session, end context.CancelCauseFunc) error {
	req, err := recv()
	if err != nil {
		return err
	}
	id := req.GetNode().GetId()
	if err := checkProxyID(id); err != nil {
		return err
	}
	ses := newSession(proxyKey{service, id}, s.cfg.Now(), s.cfg.MaxNames, end)
	if err := s.open(ses); err != nil {
		return err
	}
	defer s.leave(ses)
	for opened <- ses; ; {
		if err := s.take(ses, req); err != nil {
			return err
		}
		if req, err = recv(); err != nil {
			return err
		}
	}
}

// identify names the peer of a stream.
func (s *Server) identify(ctx context.Context) (policy.ServiceName, error) {
	service, err := s.cfg.Identity(ctx)
	if err != nil {
		return service, status.Errorf(codes.Unauthenticated, "no identity: %v", err)
	}
	return service, nil
}

// receive hands on what a stream brings. It ends with the stream, whose end is
// the context's cause.
func receive[T any](ctx context.Context, recv func() (*T, error), to chan<- *T, end context.CancelCauseFunc) {
	for {
		m, err := recv()
		if err != nil {
			end(err)
			return
		}
		select {
		case to <- m:
		case <-ctx.Done():
			return
		}
	}
}

// await gives the next message, or nil when woken, or why the stream ends.
func await[T any](ctx context.Context, closed <-chan struct{}, from <-chan *T, wake <-chan struct{}) (*T, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-closed:
		return nil, errClosing
	case m := <-from:
		return m, nil
	case <-wake:
		return nil, nil
	}
}

// asStatus turns the end of a stream into what its handler returns: a peer that
// is done makes no error.
func asStatus(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.FromContextError(err).Err()
}

func checkProxyID(id string) error {
	if id == "" || len(id) > maxProxyID {
		return status.Errorf(codes.InvalidArgument, "the proxy's id %q does not have 1 to %d bytes", clip(id), maxProxyID)
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f {
			return status.Errorf(codes.InvalidArgument, "the proxy's id %q may hold only printable ASCII without spaces", clip(id))
		}
	}
	return nil
}

// open makes a session the one of its proxy; an older one, whose connection is
// likely dead, ends.
func (s *Server) open(ses *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosing
	}
	if old := s.sessions[ses.key]; old != nil {
		old.end(errSuperseded)
	}
	s.sessions[ses.key] = ses
	return nil
}

// leave forgets a session and the topics that nobody else follows.
func (s *Server) leave(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, names := range ses.followed() {
		s.unfollowLocked(ses, kind(k), names)
	}
	if s.sessions[ses.key] == ses {
		delete(s.sessions, ses.key)
	}
}

// take lets a session take a message in, follows the topics it names and wakes
// the session if there is something to send.
func (s *Server) take(ses *session, req *discovery.DeltaDiscoveryRequest) error {
	out, err := s.request(ses, req)
	if out.nack != "" {
		s.cfg.Log.Warn("a proxy refused a change", zap.Stringer("service", ses.key.service),
			zap.String("proxy", ses.key.id), zap.String("type", kindNames[out.kind]), zap.String("reason", clip(out.nack)))
	}
	if out.due {
		ses.awake()
	}
	return err
}

// request hands a message to its session. Where the message names resources
// their topics are followed under the same lock: who finds a name due finds its
// topic too. An ACK alone needs no lock of all proxies.
func (s *Server) request(ses *session, req *discovery.DeltaDiscoveryRequest) (outcome, error) {
	if len(req.GetResourceNamesSubscribe())+len(req.GetResourceNamesUnsubscribe()) == 0 {
		return ses.request(req, s.cfg.Now())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := ses.request(req, s.cfg.Now())
	topics := s.topics[out.kind]
	for _, name := range out.added {
		if topics[name] == nil {
			topics[name] = &topic{kind: out.kind, name: name, subscribers: map[*session]struct{}{}}
		}
		topics[name].subscribers[ses] = struct{}{}
	}
	s.unfollowLocked(ses, out.kind, out.removed)
	return out, err
}

func (s *Server) unfollowLocked(ses *session, k kind, names []string) {
	for _, name := range names {
		if t := s.topics[k][name]; t != nil {
			delete(t.subscribers, ses)
			if len(t.subscribers) == 0 {
				delete(s.topics[k], name)
			}
		}
	}
}

// flush sends what is due, and tells for how long it holds something back; 0 when
// it holds nothing. What a proxy asks for and does not know is never held: an app
// waits for it.
func (s *Server) flush(ses *session, send func(*discovery.DeltaDiscoveryResponse) error) (held time.Duration, err error) {
	now := s.cfg.Now()
	wait, settle := ses.wait(now), s.cfg.SettledAt.Sub(now)
	spent := false
	for k := range kinds {
		for told := false; ; { // after changes, those made meanwhile are for another turn
			names, changes := ses.due(k, wait > 0 || told, settle > 0)
			if len(names) == 0 {
				break
			}
			topics, revision := s.find(k, names)
			entries := make([]*entry, len(names))
			for i, t := range topics {
				if t != nil {
					entries[i] = s.load(t)
				}
			}
			for _, resp := range ses.respond(k, names, entries, revision) {
				told, spent = told || changes, spent || changes
				if err := send(resp); err != nil {
					return 0, err
				}
			}
		}
	}
	if spent { // once for all types: they change together
		ses.spend(now)
	}
	if wait = max(ses.wait(now), settle); wait > 0 && ses.holds() {
		return wait, nil
	}
	return 0, nil
}

// find gives the topics of names that a session follows, nil for one that it let
// go meanwhile. The revision is read before the topics are: what is sent is of it
// or newer.
func (s *Server) find(k kind, names []string) ([]*topic, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	topics := make([]*topic, len(names))
	for i, name := range names {
		topics[i] = s.topics[k][name]
	}
	return topics, s.revision
}

func (s *Server) load(t *topic) *entry {
	e, fresh, err := t.load(s.cfg.Source)
	if fresh && err != nil {
		s.cfg.Log.Error("a resource cannot be published; the one before it stays", zap.Error(err))
	}
	return e
}
