package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/telemetry"
	"github.com/weir-mesh/weir/proxy/translate"
)

// version is the version of HTTP that an endpoint was declared to speak.
func (e *endpoint) version() translate.Version {
	switch e.protocol {
	case "http2", "grpc":
		return translate.HTTP2
	}
	return translate.HTTP1
}

// across is an endpoint as it is seen in the version of HTTP that it does not
// speak. It is made when somebody first needs it.
type across struct {
	mu     sync.Mutex // guards what follows
	bridge *translate.Bridge
	closed bool
}

// maxTranslatedHead bounds heads, as the engines' own bound does.
const maxTranslatedHead = 64 << 10

// dialFor connects to an endpoint to speak a version of HTTP to it, which may have to
// be translated.
func (p *Proxy) dialFor(l *loop.Loop, d *destination, e *endpoint, speak translate.Version, deadline time.Time) (loop.Stream, error) {
	if e.version() != speak {
		return p.dialAcross(l, d, e)
	}
	return p.dialEndpoint(l, d, e, deadline)
}

// dialAcross connects to an endpoint by way of a translation.
func (p *Proxy) dialAcross(l *loop.Loop, d *destination, e *endpoint) (loop.Stream, error) {
	near, far, err := l.Pair()
	if err != nil {
		return nil, err
	}
	bridge := e.across.get(func() *translate.Bridge {
		return translate.New(translate.Config{
			To: e.version(), MaxHeadBytes: maxTranslatedHead,
			Overload: func(err error) bool { return errors.Is(err, errOverload) },
			Dial:     func(ctx context.Context) (net.Conn, error) { return p.dialOffLoop(ctx, d, e) },
			ErrorLog: zap.NewStdLog(p.log.Named("translate").WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
		})
	})
	if bridge == nil {
		_ = near.Close()
		_ = far.Close()
		return nil, net.ErrClosed
	}
	bridge.Serve(far)
	return near, nil
}

// dialOffLoop is dialEndpoint for goroutines.
func (p *Proxy) dialOffLoop(ctx context.Context, d *destination, e *endpoint) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectLimit)
	defer cancel()
	if now := p.dests.Load().byName[d.svc.Name]; now != nil {
		d = now // the translation is as old as its endpoint
	}
	if err := p.admitOffLoop(ctx, d); err != nil {
		return nil, err
	}
	bare, err := p.toMesh.DialContext(ctx, "tcp", e.at)
	if err != nil {
		d.gates.conns.Leave()
		return nil, err
	}
	c := &placed{Conn: bare, gates: d.gates}
	var cfg *tls.Config
	switch {
	case e.mtls:
		cfg = p.id.ClientTLSAt(d.svc.Name, e.at)
	case e.origin != nil:
		cfg = e.origin.cfg
	default:
		return c, nil
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		p.refusedPeer(telemetry.Outbound, err)
		return nil, &handshakeError{err}
	}
	if !e.mtls {
		return tc, nil
	}
	kept, err := p.keepLoose(tc)
	if err != nil {
		p.refusedPeer(telemetry.Outbound, err)
		return nil, &handshakeError{err}
	}
	return kept, nil
}

// crowded reports whether it is a translation that answers, as there may be no
// connection more.
func (o *outbound) crowded(x hop) bool {
	_, refused := x.answerField(translate.Refused)
	return refused
}

// closeAcross ends all translations.
func (p *Proxy) closeAcross() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.endpoints {
		e.across.close()
	}
}

func (a *across) get(create func() *translate.Bridge) *translate.Bridge {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bridge == nil && !a.closed {
		a.bridge = create()
	}
	return a.bridge
}

// closeIdle closes the translation's connections on which no request is, if there is
// a translation.
func (a *across) closeIdle() bool {
	a.mu.Lock()
	bridge := a.bridge
	a.mu.Unlock()
	if bridge == nil {
		return false
	}
	bridge.CloseIdle()
	return true
}

func (a *across) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.bridge != nil {
		a.bridge.Close()
		a.bridge = nil
	}
}
