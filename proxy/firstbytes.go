package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/detect"
)

// firstBytes is a connection of which it is known what its first bytes say, and
// its upstream, which was dialled meanwhile: a server that speaks first is heard
// at once, and nobody waits for a client that says nothing.
type firstBytes struct {
	found  detect.Result
	client net.Conn
	peeked []byte // what the client said

	cancelDial, stopRead func()
	dialed               chan struct{} // closed when the fields below hold
	up                   net.Conn
	fromUpstream         []byte // what the upstream said
	err                  error
}

// listenBoth peeks at the client while dial runs, and ends at whoever speaks
// first. With dial nil only the client is heard, and not for long. Exactly one
// of takeUpstream and dropUpstream must follow.
func (p *Proxy) listenBoth(ctx context.Context, client net.Conn, dial func(context.Context) (net.Conn, error)) (*firstBytes, error) {
	f := &firstBytes{cancelDial: func() {}, stopRead: func() {}}
	cfg := detect.Config{Deadline: time.Now().Add(p.cfg.HandshakeTime)}
	if dial != nil {
		var dctx, rctx context.Context
		dctx, f.cancelDial = context.WithCancel(ctx)
		rctx, f.stopRead = context.WithCancel(dctx)
		spoke := make(chan struct{})
		f.dialed, cfg.Other, cfg.Deadline = make(chan struct{}), spoke, time.Time{}
		go f.dial(dctx, rctx, dial, spoke)
	}
	found, c, err := detect.Peek(ctx, client, cfg)
	f.found = found
	f.client, f.peeked = c.Unwrap()
	if err == nil && dial == nil && len(f.peeked) == 0 {
		err = errors.New("the client said nothing")
	}
	if err != nil {
		f.dropUpstream()
		return nil, err
	}
	return f, nil
}

// refusedGrace is how long a client may take to say what it wants after the
// address it dialled turned out not to answer.
const refusedGrace = 200 * time.Millisecond

// dial connects and waits for the upstream's first bytes. spoke is closed when
// they come or the upstream fails.
func (f *firstBytes) dial(dctx, rctx context.Context, dial func(context.Context) (net.Conn, error), spoke chan<- struct{}) {
	defer close(f.dialed)
	if f.up, f.err = dial(dctx); f.err != nil {
		// The client's first bytes may still name a service of the mesh.
		t := time.NewTimer(refusedGrace)
		defer t.Stop()
		select {
		case <-t.C:
			close(spoke)
		case <-rctx.Done():
		}
		return
	}
	interrupted := make(chan struct{})
	interrupt := context.AfterFunc(rctx, func() {
		_ = f.up.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	buf := make([]byte, 4096)
	n, err := f.up.Read(buf)
	if !interrupt() {
		<-interrupted
	}
	_ = f.up.SetReadDeadline(time.Time{})
	f.fromUpstream = buf[:n]
	if n > 0 || !isTimeout(err) {
		close(spoke)
	}
}

// takeUpstream gives the upstream connection; fromUpstream is then complete.
func (f *firstBytes) takeUpstream() (net.Conn, error) {
	f.stopRead()
	<-f.dialed
	f.cancelDial()
	return f.up, f.err
}

// dropUpstream closes what was dialled.
func (f *firstBytes) dropUpstream() {
	f.cancelDial()
	if f.dialed == nil {
		return
	}
	<-f.dialed
	if f.up != nil {
		_ = f.up.Close()
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// outcomeWord names a detection's end for the metric.
func outcomeWord(r detect.Result) string {
	switch r.Outcome {
	case detect.OtherSpoke:
		return "server_first"
	case detect.Silent:
		return "timeout"
	}
	switch r.Kind {
	case detect.HTTP1:
		return "http1"
	case detect.HTTP2:
		return "http2"
	case detect.TLS:
		return "tls"
	default:
		return "opaque"
	}
}

// hostIn finds the Host field in the first bytes of a request. It need not be
// strict: what it finds only leads to a service, whose requests are then read
// by the strict parser.
func hostIn(head []byte) string {
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\r\n"))
		if len(line) == 0 {
			return ""
		}
		if len(line) > 5 && strings.EqualFold(string(line[:5]), "host:") {
			host := strings.TrimSpace(string(line[5:]))
			if h, _, err := net.SplitHostPort(host); err == nil {
				return h
			}
			return host
		}
		head = rest
	}
	return ""
}

// meshName reads a host name as the name of a service, in the forms that the
// DNS server answers.
func (p *Proxy) meshName(host string) (policy.ServiceName, bool) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	domain := p.cfg.ClusterDomain
	if domain == "" {
		domain = "cluster.local"
	}
	host = strings.TrimSuffix(host, ".svc."+domain)
	host = strings.TrimSuffix(host, ".svc")
	if host == "" || strings.Count(host, ".") > 1 {
		return policy.ServiceName{}, false
	}
	n, err := policy.ParseServiceName(host, p.cfg.Service.Namespace)
	return n, err == nil
}
