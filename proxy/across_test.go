package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

// serving is a server of one version of HTTP that tells what it got.
func serving(t *testing.T, http2 bool, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(!http2)
	s.Config.Protocols.SetUnencryptedHTTP2(http2)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func speaking(protocol string) func(*policy.Target) {
	return func(t *policy.Target) { t.Protocol = protocol }
}

// appOf is a client of one version whose one connection is c.
func appOf(t *testing.T, http2 bool, c net.Conn) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
		defer func() { c = nil }()
		if c == nil {
			return nil, errors.New("there is one connection only")
		}
		return c, nil
	}}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestAnHTTP1ClientReachesAnHTTP2Endpoint(t *testing.T) {
	s := serving(t, true, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ProtoMajor != 2 || r.Host != "users" || r.Header.Get("X-Request-Id") == "" {
			t.Error(err, r.Proto, r.Host, r.Header)
		}
		w.Header().Set("Trailer", "Sum")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
		w.Header().Set("Sum", "1")
	})
	p := sidecar(t)
	if err := p.setService(users, usersWith(endpointOf("a", s.Listener.Addr().String(), speaking("http2")))); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	lc, app := redirectedPair(t, l)
	l.Post(func() { l.Go(func() { p.serveRequests(&lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
	client := appOf(t, false, app)
	for _, size := range []int{10, 300_000} {
		sent := strings.Repeat("x", size)
		resp, err := client.Post("http://users/a?b", "text/plain", strings.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != sent || resp.StatusCode != http.StatusCreated || resp.Trailer.Get("Sum") != "1" {
			t.Error(len(got), err, resp.Status, resp.Trailer)
		}
	}
}
