package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

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

// Connections that translations make count against max_connections like all others,
// make room like them when they are idle, and whoever finds none hears of overload,
// which is no failure of the endpoint.
func TestTranslationsKeepToTheBoundOfConnections(t *testing.T) {
	for name, http2 := range map[string]bool{"to HTTP/1.1": false, "to HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			hold := make(chan struct{})
			s := serving(t, http2, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/hold" {
					<-hold
				}
			})
			other := serving(t, http2, func(http.ResponseWriter, *http.Request) {})
			p := sidecar(t)
			protocol := map[bool]string{false: "http", true: "http2"}[http2]
			svc := usersWith(endpointOf("a", s.Listener.Addr().String(), speaking(protocol)))
			svc.Traffic.Overload = policy.Overload{Connections: 1}
			svc.Traffic.Breaker = policy.Breaker{Enabled: true, Threshold: 1, Timeout: time.Minute}
			svc.Traffic.Retry.Attempts = 1
			if err := p.setService(users, svc); err != nil {
				t.Fatal(err)
			}
			l := turning(t, p)
			newClient := func() *http.Client {
				lc, app := redirectedPair(t, l)
				l.Post(func() {
					l.Go(func() {
						how := asStreams
						if http2 {
							how = asRequests
						}
						p.serveAs(how, &lc.Conn, nil, lc, p.dests.Load().byName[users])
					})
				})
				return appOf(t, !http2, app)
			}
			get := func(c *http.Client, path string) (int, string) {
				resp, err := c.Get("http://users" + path)
				if err != nil {
					t.Error(err)
					return 0, ""
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				return resp.StatusCode, resp.Header.Get("weir-error")
			}
			d := p.dests.Load().byName[users]
			first := newClient()
			if status, _ := get(first, "/"); status != 200 || d.gates.conns.Inside() != 1 {
				t.Fatalf("%d, %d connections are counted", status, d.gates.conns.Inside())
			}
			// What is idle makes room for another endpoint's.
			both := *svc
			both.Endpoints = append(slices.Clone(svc.Endpoints), endpointOf("b", other.Listener.Addr().String(), speaking(protocol)))
			both.Traffic.Strategy = "round_robin"
			if err := p.setService(users, &both); err != nil {
				t.Fatal(err)
			}
			for range 4 {
				if status, word := get(first, "/"); status != 200 || d.gates.conns.Inside() > 1 {
					t.Errorf("%d %s, %d connections are counted", status, word, d.gates.conns.Inside())
				}
			}
			// What is not, does not. (Requests in HTTP/2 share a connection.)
			if !http2 {
				if err := p.setService(users, svc); err != nil {
					t.Fatal(err)
				}
				held := make(chan struct{})
				go func() { defer close(held); get(first, "/hold") }()
				for d.gates.conns.Inside() != 1 || d.members[0].stats.InFlight() == 0 {
					time.Sleep(time.Millisecond) // polled, bounded by the test's own time
				}
				if status, word := get(newClient(), "/"); status != 503 || word != "overload" {
					t.Errorf("%d %s", status, word)
				}
				close(hold)
				<-held
				if status, word := get(first, "/"); status != 200 {
					t.Errorf("%d %s: to be crowded is no failure", status, word)
				}
			}
			p.closeAcross()
			if n := d.gates.conns.Inside(); n != 0 {
				t.Errorf("%d connections are counted, none is there", n)
			}
		})
	}
}
