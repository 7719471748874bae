// Package translate carries requests of one version of HTTP to a server that speaks another.
// It does not choose the server or decide policy: whoever sends requests takes it for the server.
//
// It is net/http that does it, on goroutines and with a copy of everything: versions
// differ seldom, and what they differ in is much. An exchange costs several times
// what one costs that stays in its version.
package translate

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"time"
)

// Version is one of HTTP, without TLS.
type Version uint8

// The versions that can be translated, each to the other.
const (
	HTTP1 Version = iota + 1
	HTTP2         // with prior knowledge (RFC 9113 section 3.3)
)

// Config says what a Bridge leads to. All of it is needed.
type Config struct {
	// To is what the server speaks; connections given to the Bridge speak the other.
	To Version
	// Dial connects to the server, with whatever TLS there is to be.
	Dial func(context.Context) (net.Conn, error)
	// Overload tells of an error of Dial that the server is not to blame for, as there
	// may be no connection more. The answer is 503 with the field Refused.
	Overload func(error) bool
	// MaxHeadBytes bounds a request's head and an answer's.
	MaxHeadBytes int
	// ErrorLog is told what net/http has to say.
	ErrorLog *log.Logger
}

// Bridge is one server as it is seen in another version of HTTP.
type Bridge struct {
	server    *http.Server
	transport *http.Transport
}

// Refused is a field of answers that the Bridge makes itself, never of the server's.
const Refused = "Weir-Translate-Refused"

// idle is how long a connection to the server is kept without a request, and
// maxIdle how many.
const (
	idle    = 30 * time.Second
	maxIdle = 256
)

// New makes a Bridge. It connects to nothing.
func New(cfg Config) *Bridge {
	var near, far http.Protocols
	far.SetHTTP1(cfg.To == HTTP1)
	far.SetUnencryptedHTTP2(cfg.To == HTTP2)
	near.SetHTTP1(cfg.To == HTTP2)
	near.SetUnencryptedHTTP2(cfg.To == HTTP1)
	b := &Bridge{transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) },
		Protocols:              &far,
		DisableCompression:     true, // the body is not ours to change
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idle,
		MaxResponseHeaderBytes: int64(cfg.MaxHeadBytes),
	}}
	b.server = &http.Server{
		Protocols:      &near,
		MaxHeaderBytes: cfg.MaxHeadBytes,
		ErrorLog:       cfg.ErrorLog,
		Handler: &httputil.ReverseProxy{
			Rewrite: rewrite, ModifyResponse: keepTrailers, Transport: b.transport, FlushInterval: -1, ErrorLog: cfg.ErrorLog,
			// The sender is to see a server that failed, and to decide what that means.
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				if !cfg.Overload(err) {
					panic(http.ErrAbortHandler)
				}
				w.Header().Set(Refused, "overload")
				w.WriteHeader(http.StatusServiceUnavailable)
			},
		},
	}
	return b
}

// rewrite leaves the request as it came; ReverseProxy has changed some of it.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host = "http", "server" // Dial knows where it is
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	r.Out.Host = r.In.Host
	r.Out.Trailer = r.In.Trailer // whose values come with the end of the body
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v := r.In.Header[name]; v != nil {
			r.Out.Header[name] = v
		}
	}
}

// keepTrailers has HTTP/1.1 carry trailers: it can only where no length is given,
// and HTTP/2 can in any case.
func keepTrailers(r *http.Response) error {
	r.Header.Del(Refused)
	if len(r.Trailer) > 0 {
		r.Header.Del("Content-Length")
	}
	return nil
}

// Serve carries the requests of c, until c ends or the Bridge is closed. It does
// not wait.
func (b *Bridge) Serve(c net.Conn) {
	if err := b.server.Serve(&once{c: c}); errors.Is(err, http.ErrServerClosed) {
		_ = c.Close()
	}
}

// CloseIdle closes connections to the server on which no request is.
func (b *Bridge) CloseIdle() { b.transport.CloseIdleConnections() }

// Close ends all connections.
func (b *Bridge) Close() {
	_ = b.server.Close()
	b.transport.CloseIdleConnections()
}

// once is a listener to whom one connection came, and no other will.
type once struct{ c net.Conn }

func (o *once) Accept() (net.Conn, error) {
	c := o.c
	if o.c = nil; c == nil {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.UnixAddr{} }
