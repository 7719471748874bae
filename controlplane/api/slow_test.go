package api_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
)

// pipeListener accepts the one connection that it holds.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestABodyThatDoesNotArriveIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh()
		h, err := api.New(config(m))
		check(t, err)
		client, server := net.Pipe()
		l := &pipeListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		l.conns <- server
		srv := &http.Server{Handler: h}
		go srv.Serve(l)
		start := time.Now()
		fmt.Fprintf(client, "POST /api/v1/config HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{", token)
		resp, err := http.ReadResponse(bufio.NewReader(client), nil)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != 408 || !resp.Close || m.stored() != 0 {
			t.Errorf("%d, close %v, %d writes", resp.StatusCode, resp.Close, m.stored())
		}
		if waited := time.Since(start); waited != 10*time.Second { // of the bubble's own clock
			t.Errorf("given up after %v", waited)
		}
		client.Close()
		srv.Close()
	})
}

// A store may take longer than a body: the deadline for the body must not cut
// it short.
func TestASlowStoreIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh()
		cfg := config(m)
		cfg.Mesh = slow{m}
		h, err := api.New(cfg)
		check(t, err)
		client, server := net.Pipe()
		l := &pipeListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
		l.conns <- server
		srv := &http.Server{Handler: h}
		go srv.Serve(l)
		go fmt.Fprintf(client, "POST /api/v1/traffic-rules/default/web HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\n\r\n{}", token)
		resp, err := http.ReadResponse(bufio.NewReader(client), nil)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
		client.Close()
		srv.Close()
	})
}
