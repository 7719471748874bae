package publish

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	maxNameBytes = 512
	maxProxyID   = 253
)

// session is one proxy's discovery stream. One goroutine takes in what the proxy
// says, another sends (serve.go); others mark changes and read its status.
type session struct {
	key      proxyKey
	openedAt time.Time
	maxNames int
	wake     chan struct{} // of one place: there is something to look at
	end      context.CancelCauseFunc

	mu       sync.Mutex // guards what follows; Server.mu is never taken under it
	deltas   [kinds]*delta
	lastSeen time.Time
	nonces   uint64
	pace     pace
}

func newSession(key proxyKey, now time.Time, maxNames int, end context.CancelCauseFunc) *session {
	return &session{key: key, openedAt: now, lastSeen: now, maxNames: maxNames, wake: make(chan struct{}, 1), end: end}
}

// mark notes a change of a resource that the proxy follows.
func (ses *session) mark(k kind, name string) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if d := ses.deltas[k]; d != nil {
		d.mark(name)
	}
}

// awake lets the session's loop look at what is marked.
func (ses *session) awake() {
	select {
	case ses.wake <- struct{}{}:
	default:
	}
}

// outcome is what a message of the proxy amounts to.
type outcome struct {
	kind    kind
	added   []string // names it newly follows
	removed []string // names it follows no more
	nack    string   // why it refused a response; "" when it did not
	due     bool     // something may be to send
}

// request takes one message of the proxy in. The error is a gRPC status; what
// was taken in before it shows in the outcome all the same.
func (ses *session) request(req *discovery.DeltaDiscoveryRequest, now time.Time) (outcome, error) {
	k, ok := kindOf(req.GetTypeUrl())
	if !ok {
		return outcome{}, status.Errorf(codes.InvalidArgument, "type URL %q is not one of this mesh's", clip(req.GetTypeUrl()))
	}
	if err := ses.check(k, req); err != nil {
		return outcome{}, err
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	ses.lastSeen = now
	out := outcome{kind: k}
	known := req.GetInitialResourceVersions()
	if ses.deltas[k] == nil {
		ses.deltas[k] = newDelta(k)
	} else {
		known = nil // only the first message of a type may bring them
	}
	d := ses.deltas[k]
	if nonce := req.GetResponseNonce(); nonce != "" {
		if reason := nackReason(req); d.settle(nonce, reason, now) {
			out.nack = reason
		}
	}
	out.added = d.subscribe(req.GetResourceNamesSubscribe(), known)
	out.removed = d.unsubscribe(req.GetResourceNamesUnsubscribe())
	out.due = len(d.asked)+len(d.changed) > 0
	if n := ses.followedLocked(); n > ses.maxNames {
		return out, status.Errorf(codes.ResourceExhausted, "%d resources are more than the %d that one proxy may follow", n, ses.maxNames)
	}
	return out, nil
}

// check refuses what the proxy may not ask for.
func (ses *session) check(k kind, req *discovery.DeltaDiscoveryRequest) error {
	subscribe := req.GetResourceNamesSubscribe()
	if len(subscribe) == 0 && len(req.GetResourceNamesUnsubscribe()) == 0 && ses.deltas[k] == nil {
		// A first message without names subscribes to everything (xDS protocol,
		// "How the client specifies what resources to return").
		return status.Errorf(codes.InvalidArgument, "a subscription to every %s is not served: name the resources", kindNames[k])
	}
	for _, name := range subscribe {
		switch {
		case name == "*":
			return status.Errorf(codes.InvalidArgument, "a subscription to every %s is not served: name the resources", kindNames[k])
		case name == "" || len(name) > maxNameBytes:
			return status.Errorf(codes.InvalidArgument, "the %s name %q does not have 1 to %d bytes", kindNames[k], clip(name), maxNameBytes)
		case k == kindInbound && name != ses.key.service.String():
			return status.Errorf(codes.PermissionDenied, "inbound %q is not for %s", clip(name), ses.key.service)
		}
	}
	return nil
}

// due takes out what is to be looked at next, without changes if they are held,
// and without the services that the proxy knows from before if it settles.
func (ses *session) due(k kind, held, settling bool) (names []string, changes bool) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.deltas[k] == nil {
		return nil, false
	}
	return ses.deltas[k].due(held, settling && k == kindService)
}

// wait tells how long the session's changes are held back.
func (ses *session) wait(now time.Time) time.Duration {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.pace.wait(now)
}

// spend notes that changes were sent.
func (ses *session) spend(now time.Time) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	ses.pace.spend(now)
}

// holds tells whether there is something that was not looked at.
func (ses *session) holds() bool {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return slices.ContainsFunc(ses.deltas[:], func(d *delta) bool { return d != nil && len(d.asked)+len(d.changed) > 0 })
}

// respond gives the messages to send for what was due.
func (ses *session) respond(k kind, names []string, entries []*entry, revision int64) []*discovery.DeltaDiscoveryResponse {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.deltas[k].respond(names, entries, revision, ses.nextNonceLocked)
}

func (ses *session) nextNonceLocked() string {
	ses.nonces++
	return strconv.FormatUint(ses.nonces, 10)
}

func (ses *session) followedLocked() int {
	n := 0
	for _, d := range ses.deltas {
		if d != nil {
			n += len(d.subs)
		}
	}
	return n
}

// followed lists the names the session follows, by kind.
func (ses *session) followed() (names [kinds][]string) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	for k, d := range ses.deltas {
		if d == nil {
			continue
		}
		for name := range d.subs {
			names[k] = append(names[k], name)
		}
	}
	return names
}

func (ses *session) describe(p *ProxyStatus) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	p.Following = true
	p.opened(ses.openedAt, ses.lastSeen)
	p.Subscribed = ses.followedLocked()
	for _, d := range ses.deltas {
		if d != nil {
			p.Types = append(p.Types, d.status())
		}
	}
}

func (ses *session) resources() []ResourceStatus {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	out := []ResourceStatus{}
	for k, d := range ses.deltas {
		if d == nil {
			continue
		}
		for name, s := range d.subs {
			out = append(out, ResourceStatus{Type: kindNames[k], Name: name, Sent: s.sent, Acked: s.acked, Nack: s.nack})
		}
	}
	slices.SortFunc(out, func(a, b ResourceStatus) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// nackReason is "" for an ACK.
func nackReason(req *discovery.DeltaDiscoveryRequest) string {
	detail := req.GetErrorDetail()
	if detail == nil {
		return ""
	}
	if m := detail.GetMessage(); m != "" {
		return m
	}
	return fmt.Sprintf("no reason given (code %d)", detail.GetCode())
}

// clip bounds what of a peer's text goes into a message.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
