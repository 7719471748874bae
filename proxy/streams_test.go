package proxy

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/breaker"
)

func TestWhatAGRPCStatusSaysOfAServer(t *testing.T) {
	for code, want := range map[int]int{0: 200, 1: 200, 5: 200, 12: 200, 16: 200, 2: 500, 13: 500, 14: 503, 15: 500, 4: 504, -1: 502, 99: 200} {
		if got := grpcAsHTTP(code); got != want {
			t.Errorf("grpc-status %d: %d", code, got)
		}
	}
}

func TestRefusalsHaveAGRPCStatus(t *testing.T) {
	for r, want := range map[*refusal]int{
		noEndpoints: 14, appDown: 14, upstreamFailed: 14, circuitOpen: 14, rateLimited: 8, timedOutUpstream: 4,
		badRequest: 13, headTooLarge: 8, notImplemented: 12, tokenMissing: 16, denied("x"): 7,
	} {
		if got := grpcOf(r.status); got != want {
			t.Errorf("%d %s: %d", r.status, r.text, got)
		}
	}
}

// A client that speaks HTTP/2 has its requests carried to either kind of endpoint,
// each to another one.
func TestAnHTTP2ClientIsBalancedByRequest(t *testing.T) {
	for _, protocol := range []string{"http2", "http"} {
		t.Run(protocol, func(t *testing.T) {
			var targets []policy.Target
			for _, id := range []string{"a", "b", "c"} {
				s := serving(t, protocol == "http2", func(w http.ResponseWriter, r *http.Request) {
					if major := map[bool]int{true: 2, false: 1}[protocol == "http2"]; r.ProtoMajor != major || r.Host != "users" {
						t.Error(r.Proto, r.Host)
					}
					w.Header().Set("Who", id)
				})
				targets = append(targets, endpointOf(id, s.Listener.Addr().String(), speaking(protocol)))
			}
			p := sidecar(t)
			svc := usersWith(targets...)
			svc.Traffic.Strategy = "round_robin"
			if err := p.setService(users, svc); err != nil {
				t.Fatal(err)
			}
			l := turning(t, p)
			lc, app := redirectedPair(t, l)
			l.Post(func() { l.Go(func() { p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
			client := appOf(t, true, app)
			seen := map[string]int{}
			for range 9 {
				resp, err := client.Get("http://users/a")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				seen[resp.Header.Get("Who")]++
			}
			if seen["a"] != 3 || seen["b"] != 3 || seen["c"] != 3 {
				t.Error("not in turn:", seen)
			}
		})
	}
}

// However many requests there were, one connection to the server carries them: more
// of them than it may carry at a time, answered, tried again and broken off.
func TestRequestsOfHTTP2ShareAConnection(t *testing.T) {
	var mu sync.Mutex
	from := map[string]int{}
	broken := make(chan struct{})
	s := serving(t, true, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from[r.RemoteAddr]++
		fails := r.URL.Path == "/fails" && from[r.RemoteAddr]%2 == 1
		mu.Unlock()
		if fails {
			w.WriteHeader(503)
		}
		if r.URL.Path == "/long" {
			broken <- struct{}{}
			<-r.Context().Done()
			broken <- struct{}{}
		}
	})
	p := sidecar(t)
	svc := usersWith(endpointOf("a", s.Listener.Addr().String(), speaking("http2")))
	svc.Traffic.Retry = policy.Retry{Attempts: 2, Delay: 1}
	svc.Traffic.Breaker.Enabled = false
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	lc, app := redirectedPair(t, l)
	l.Post(func() { l.Go(func() { p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
	client := appOf(t, true, app)
	for _, path := range []string{"/", "/fails"} {
		for range 300 {
			resp, err := client.Get("http://users" + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	for range 300 {
		ctx, stop := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", "http://users/long", nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() { <-broken; stop() }()
		if resp, err := client.Do(req); err == nil {
			t.Fatal(resp.Status)
		}
		<-broken
	}
	mu.Lock()
	defer mu.Unlock()
	if len(from) != 1 {
		t.Errorf("%d connections for 900 requests", len(from))
	}
}

// Streams that clients break off say nothing about the server.
func TestCancelledCallsOpenNoCircuit(t *testing.T) {
	begun := make(chan struct{})
	s := serving(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_ = http.NewResponseController(w).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	})
	p := sidecar(t)
	svc := usersWith(endpointOf("a", s.Listener.Addr().String(), speaking("grpc")))
	svc.Traffic.Breaker = policy.Breaker{Enabled: true, Threshold: 2, Timeout: time.Minute}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	lc, app := redirectedPair(t, l)
	l.Post(func() { l.Go(func() { p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
	client := appOf(t, true, app)
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "POST", "http://users/a.B/C", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		go func() { <-begun; cancel() }()
		resp, err := client.Do(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		cancel()
	}
	e := p.dests.Load().byName[users].choose("", 0).endpoints[0]
	if st := e.circuit.State(time.Now()); st != breaker.Closed {
		t.Error("the circuit is", st)
	}
}

func TestAnHTTP2ClientHearsOfWhatIsRefused(t *testing.T) {
	p := sidecar(t)
	if err := p.setService(users, usersWith()); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	lc, app := redirectedPair(t, l)
	l.Post(func() { l.Go(func() { p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
	client := appOf(t, true, app)
	resp, err := client.Get("http://users/a")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Weir-Error") != "no-endpoints" {
		t.Error(resp.Status, resp.Header)
	}
	req, err := http.NewRequest("POST", "http://users/a.B/C", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc+proto")
	req.Header.Set("Te", "trailers")
	if resp, err = client.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "14" || resp.Header.Get("Grpc-Message") == "" || resp.Header.Get("Weir-Error") != "no-endpoints" {
		t.Error(resp.Status, resp.Header)
	}
}

// A call that a server refuses at once, by a head alone, is judged by what that says:
// "not found" is not a server that fails.
func TestACallThatEndsWithItsHeadIsJudgedByItsStatus(t *testing.T) {
	s := serving(t, true, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "5")
	})
	p := sidecar(t)
	svc := usersWith(endpointOf("a", s.Listener.Addr().String(), speaking("grpc")))
	svc.Traffic.Breaker = policy.Breaker{Enabled: true, Threshold: 1, Timeout: time.Minute}
	if err := p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	l := turning(t, p)
	lc, app := redirectedPair(t, l)
	l.Post(func() { l.Go(func() { p.serveAs(asStreams, &lc.Conn, nil, lc, p.dests.Load().byName[users]) }) })
	client := appOf(t, true, app)
	for range 3 {
		resp, err := client.Post("http://users/a.B/C", "application/grpc", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Grpc-Status"); got != "5" {
			t.Errorf("grpc-status %s, %s", got, resp.Header.Get("Weir-Error"))
		}
	}
}
