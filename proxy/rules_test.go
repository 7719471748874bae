package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/listen"
)

var shadow = policy.ServiceName{Namespace: "default", Name: "shadow"}

// webApp is an endpoint: a plain server that remembers what it was asked.
type webApp struct {
	*httptest.Server
	name   string
	answer atomic.Pointer[http.HandlerFunc] // nil answers with the name

	mu   sync.Mutex // guards what follows
	seen []*http.Request
	body []string
	told chan struct{} // has room for every request
}

func newWebApp(t *testing.T, name string) *webApp {
	a := &webApp{name: name, told: make(chan struct{}, 10_000)}
	a.Server = httptest.NewUnstartedServer(a)
	a.Config.Protocols = inHTTP2.protocols()
	a.Start()
	t.Cleanup(a.Close)
	return a
}

// leave ends the app. Its port stays taken, without a listener, so that nobody
// else on the machine answers there.
func (a *webApp) leave(t *testing.T) {
	t.Helper()
	at := netip.MustParseAddrPort(a.Listener.Addr().String())
	a.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // else what the app's clients closed keeps it
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		t.Fatal(err)
	}
}

// inHTTP2 has the tests of rules run with clients and servers that speak HTTP/2.
var inHTTP2 version2

type version2 bool

func (v version2) protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(!bool(v))
	p.SetUnencryptedHTTP2(bool(v))
	return p
}

func (v version2) carriage() carriage {
	if v {
		return asStreams
	}
	return asRequests
}

// endpoint is one that was declared to speak the version.
func (v version2) endpoint(id string, a *webApp) policy.Target {
	protocol := "http"
	if v {
		protocol = "http2"
	}
	return endpointOf(id, a.Listener.Addr().String(), speaking(protocol))
}

// TestRulesHoldInHTTP2 runs the stories of rules once more.
func TestRulesHoldInHTTP2(t *testing.T) {
	inHTTP2 = true
	t.Cleanup(func() { inHTTP2 = false })
	for name, story := range map[string]func(*testing.T){
		"Rewrite": TestARuleRewritesWhatTheServiceGets, "Answer": TestARuleAnswersByItself, "Mirror": TestACopyGoesToTheMirror,
		"MirrorAway": TestAMirrorThatIsAwayOrStuckHarmsNobody, "Fault": TestFaultsAreInjected, "PerTry": TestATryThatTakesTooLongIsMadeElsewhere,
		"TimeLeft": TestWhatIsLeftOfTheTimeIsPassedOn, "Pause": TestAnAnswerThatPausesTooLongIsCut, "Retry": TestARuleSaysWhatIsTriedAgain,
		"Dial": TestADialThatFailsIsAConnectFailure, "Cookie": TestACookieKeepsAClientAtItsEndpoint, "CookieLost": TestAClientWhoseEndpointFailsGetsAnother,
		"FaultLeft": TestAFaultsDelayEndsWithItsClient, "Hedge": TestALateRequestIsSentToASecondEndpoint, "NoHedge": TestWhatIsNotSentTwice, "HedgeTimes": TestHedgesGoByWhatRequestsTake,
	} {
		t.Run(name, story)
	}
}

func (a *webApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	a.seen, a.body = append(a.seen, r), append(a.body, string(b))
	a.mu.Unlock()
	a.told <- struct{}{}
	if h := a.answer.Load(); h != nil {
		(*h)(w, r)
		return
	}
	_, _ = io.WriteString(w, a.name)
}

func (a *webApp) does(h http.HandlerFunc) { a.answer.Store(&h) }

// last is the newest request; nil is none.
func (a *webApp) last() *http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) == 0 {
		return nil
	}
	return a.seen[len(a.seen)-1]
}

func (a *webApp) lastBody() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.body[len(a.body)-1]
}

// all lists the requests.
func (a *webApp) all() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen)
}

func (a *webApp) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

// ruled is a sidecar's way out with real sockets: a client, the service "users"
// with the endpoints a and b, and the service "shadow".
type ruled struct {
	t            *testing.T
	p            *Proxy
	client       *http.Client
	addr         string
	a, b, shadow *webApp
	traffic      func(*policy.Traffic)
}

func newRuled(t *testing.T) *ruled {
	r := &ruled{t: t, p: sidecar(t), a: newWebApp(t, "a"), b: newWebApp(t, "b"), shadow: newWebApp(t, "shadow")}
	if err := r.p.makeLoops(); err != nil {
		t.Fatal(err)
	}
	var turning sync.WaitGroup
	for _, l := range r.p.loops {
		turning.Go(l.Run)
	}
	t.Cleanup(func() { r.p.closeLoops(); turning.Wait() })
	r.rules()
	copies := &policy.Service{Name: shadow, Traffic: r.service().Traffic, Endpoints: []policy.Target{inHTTP2.endpoint("s", r.shadow)}}
	if err := r.p.setService(shadow, copies); err != nil {
		t.Fatal(err)
	}
	ln, err := listen.New(listen.Config{Addrs: []string{"127.0.0.1:0"}, OriginalDst: func(syscall.Conn) (netip.AddrPort, error) {
		return netip.MustParseAddrPort("240.240.0.1:80"), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- ln.Run(ctx, r.p.loops, func(lc *listen.Conn) {
			r.p.serveAs(inHTTP2.carriage(), &lc.Conn, nil, lc, r.p.dests.Load().byName[users])
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	r.addr = ln.Addrs()[0].String()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", r.addr)
	}, DisableCompression: true, Protocols: inHTTP2.protocols()}
	t.Cleanup(tr.CloseIdleConnections)
	r.client = &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r
}

// forget has the endpoints forget what they were asked.
func (r *ruled) forget() {
	for _, app := range []*webApp{r.a, r.b} {
		app.mu.Lock()
		app.seen = nil
		app.mu.Unlock()
	}
}

func (r *ruled) service() *policy.Service {
	svc := usersWith(inHTTP2.endpoint("a", r.a), inHTTP2.endpoint("b", r.b))
	svc.Traffic.Strategy = "round_robin"
	svc.Traffic.Retry = policy.Retry{Attempts: 2}
	svc.Traffic.Breaker = policy.Breaker{}
	if r.traffic != nil {
		r.traffic(&svc.Traffic)
	}
	return svc
}

// rules has the service's rules be these.
func (r *ruled) rules(changes ...func(*policy.TrafficRule)) {
	r.t.Helper()
	svc := r.service()
	for _, change := range changes {
		rule := policy.DefaultTrafficRule()
		rule.ID = "r" + strconv.Itoa(len(svc.Rules))
		change(&rule)
		if p := rule.Validate(); len(p) > 0 {
			r.t.Fatal(p)
		}
		svc.Rules = append(svc.Rules, rule)
	}
	if err := r.p.setService(users, svc); err != nil {
		r.t.Fatal(err)
	}
}

// do sends one request and gives the answer with its body; header is names and
// values in turn.
func (r *ruled) do(method, target, body string, header ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://users"+target, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}

func (r *ruled) get(target string, header ...string) (*http.Response, string) {
	r.t.Helper()
	return r.do("GET", target, "", header...)
}

// want checks an answer's status and weir-error word.
func want(t *testing.T, resp *http.Response, status int, word string) {
	t.Helper()
	if resp.StatusCode != status || resp.Header.Get("weir-error") != word {
		t.Errorf("got %d %q, want %d %q", resp.StatusCode, resp.Header.Get("weir-error"), status, word)
	}
}

// metric reads a counter of the service "users".
func (r *ruled) metric(name, label string) (n int) {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.p.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, `service="users"`) && strings.Contains(line, `"`+label+`"`) {
			_, value, _ := strings.Cut(line, "} ")
			n, _ = strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return n
}

// awaitMetric waits until a counter has a value.
func (r *ruled) awaitMetric(name, label string, n int) {
	r.t.Helper()
	for range 1000 {
		if r.metric(name, label) == n {
			return
		}
		time.Sleep(5 * time.Millisecond) // polled, bounded by 5 s
	}
	r.t.Fatalf("%s %s is %d, not %d", name, label, r.metric(name, label), n)
}

func ptr[T any](v T) *T { return &v }

func TestARuleRewritesWhatTheServiceGets(t *testing.T) {
	r := newRuled(t)
	r.rules(func(rule *policy.TrafficRule) {
		rule.MatchPath = "/api/*"
		rule.Rewrite = &policy.Rewrite{PathPrefix: "/v2", Host: "internal.test"}
		rule.RequestHeaders = &policy.HeaderChanges{Set: map[string]string{"X-Set": "new"}, Add: map[string]string{"X-Add": "second"}, Remove: []string{"X-Gone"}}
		rule.ResponseHeaders = &policy.HeaderChanges{Set: map[string]string{"Server": "hidden"}, Add: map[string]string{"X-Rule": "api"}, Remove: []string{"X-Powered-By"}}
	})
	for _, app := range []*webApp{r.a, r.b} {
		app.does(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "app/1")
			w.Header().Set("X-Powered-By", "much")
		})
	}
	for range 3 { // on one connection, so that what one request had is not the next one's
		resp, _ := r.get("/api/users?id=7", "X-Set", "old", "X-Add", "first", "X-Gone", "1")
		if h := resp.Header; h.Get("Server") != "hidden" || h.Get("X-Rule") != "api" || h.Get("X-Powered-By") != "" {
			t.Errorf("the caller gets %v", h)
		}
		plain, _ := r.get("/other", "X-Gone", "1")
		if h := plain.Header; h.Get("Server") != "app/1" || h.Get("X-Rule") != "" {
			t.Errorf("without the rule the caller gets %v", h)
		}
	}
	var changed, plain int
	for _, app := range []*webApp{r.a, r.b} {
		for _, req := range app.all() {
			if req.URL.Path == "/other" && req.Host == "users" && req.Header.Get("X-Gone") == "1" {
				plain++
			}
			if req.RequestURI == "/v2/users?id=7" && req.Host == "internal.test" && req.Header.Get("X-Set") == "new" &&
				fmt.Sprint(req.Header["X-Add"]) == "[first second]" && req.Header.Get("X-Gone") == "" {
				changed++
			}
		}
	}
	if changed != 3 || plain != 3 {
		t.Errorf("%d requests came as the rule says, %d without; %v", changed, plain, r.a.last())
	}
}

func TestARuleAnswersByItself(t *testing.T) {
	r := newRuled(t)
	r.rules(func(rule *policy.TrafficRule) {
		rule.MatchPath, rule.Redirect = "/old/*", &policy.Redirect{Scheme: "https", Host: "new.test", PathPrefix: "/new", Status: 308}
		rule.ResponseHeaders = &policy.HeaderChanges{Set: map[string]string{"Cache-Control": "no-store"}}
	}, func(rule *policy.TrafficRule) {
		rule.MatchPath, rule.DirectResponse = "/robots.txt", &policy.DirectResponse{Status: 200, Body: "User-agent: *\n"}
	}, func(rule *policy.TrafficRule) {
		rule.MatchPath, rule.DirectResponse = "/gone", &policy.DirectResponse{Status: 410, Body: "{}", ContentType: "application/json"}
	})
	resp, body := r.get("/old/a?b=c")
	if want(t, resp, 308, ""); resp.Header.Get("Location") != "https://new.test/new/a?b=c" || body != "" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("redirect %v %q", resp.Header, body)
	}
	resp, body = r.get("/robots.txt")
	if want(t, resp, 200, ""); body != "User-agent: *\n" || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("answer %v %q", resp.Header, body)
	}
	resp, body = r.do("POST", "/gone", strings.Repeat("x", 100_000))
	if want(t, resp, 410, ""); body != "{}" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("answer %v %q", resp.Header, body)
	}
	if n := r.a.count() + r.b.count(); n != 0 {
		t.Errorf("%d requests came to the service", n)
	}
}

func mirroredTo(percent float64) func(*policy.TrafficRule) {
	return func(rule *policy.TrafficRule) {
		rule.Mirror = &policy.Mirror{Service: "shadow", Percent: &percent}
		rule.MatchPath, rule.Rewrite = "/m*", &policy.Rewrite{PathPrefix: "/n"}
	}
}

func TestACopyGoesToTheMirror(t *testing.T) {
	r := newRuled(t)
	r.rules(mirroredTo(100))
	resp, body := r.get("/m/1?q", "X-Own", "kept")
	if want(t, resp, 200, ""); body == "shadow" {
		t.Error("the mirror's answer was used")
	}
	<-r.shadow.told
	got := r.shadow.last()
	if got.RequestURI != "/n/1?q" || got.Host != "users" || got.Header.Get("X-Weir-Mirror") != "1" || got.Header.Get("X-Own") != "kept" || got.Header.Get("X-Source-Service") != "front" {
		t.Errorf("the mirror got %s %s %v", got.RequestURI, got.Host, got.Header)
	}
	first := r.a.last()
	if first == nil {
		first = r.b.last()
	}
	if first.Header.Get("X-Weir-Mirror") != "" {
		t.Errorf("the service got %v", first.Header)
	}
	if id := first.Header.Get("X-Request-ID"); id == "" || id != got.Header.Get("X-Request-ID") {
		t.Errorf("ids %q and %q", id, got.Header.Get("X-Request-ID"))
	}
	r.awaitMetric("weir_mirrored_total", "sent", 1)

	r.do("POST", "/m/2", strings.Repeat("x", 50_000))
	<-r.shadow.told
	if n := len(r.shadow.lastBody()); n != 50_000 {
		t.Errorf("the mirror got %d bytes", n)
	}
	r.do("POST", "/m/3", strings.Repeat("x", 500_000)) // beyond what is kept
	r.awaitMetric("weir_mirrored_total", "too_large", 1)
	asks := []string{"Connection", "Upgrade", "Upgrade", "websocket"} // which is not for two
	if inHTTP2 {
		asks = nil // HTTP/2 has no such thing
		r.rules(mirroredTo(0))
	}
	upgrade, _ := r.get("/m/ws", asks...)
	want(t, upgrade, 200, "")
	r.rules(mirroredTo(0))
	r.get("/m/4")
	r.awaitMetric("weir_mirrored_total", "sent", 2)
	if n := r.shadow.count(); n != 2 {
		t.Errorf("the mirror got %d requests", n)
	}
	r.awaitMetric("weir_requests_total", "200", 5) // each is counted when its answer has gone
}

// What is wrong with the mirror is nothing to the caller.
func TestAMirrorThatIsAwayOrStuckHarmsNobody(t *testing.T) {
	r := newRuled(t)
	r.rules(mirroredTo(100))
	stuck := make(chan struct{})
	r.shadow.does(func(http.ResponseWriter, *http.Request) { <-stuck })
	const many = 20
	total := maxMirrored*len(r.p.loops) + many
	for range total {
		if resp, body := r.get("/m"); resp.StatusCode != 200 || body == "shadow" {
			t.Fatalf("%d %q", resp.StatusCode, body)
		}
	}
	crowded := r.metric("weir_mirrored_total", "crowded")
	if crowded < many {
		t.Errorf("%d copies were left out, of %d with room for %d", crowded, total, total-many)
	}
	close(stuck)
	r.awaitMetric("weir_mirrored_total", "sent", total-crowded)
	// Nor does the mirror miss what the service fails.
	for _, app := range []*webApp{r.a, r.b} {
		app.does(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	}
	if resp, _ := r.do("PUT", "/m", strings.Repeat("x", 50_000)); resp.StatusCode != 502 {
		t.Errorf("%d", resp.StatusCode)
	}
	r.awaitMetric("weir_mirrored_total", "sent", total-crowded+1)
	for _, app := range []*webApp{r.a, r.b} {
		app.answer.Store(nil)
	}
	r.shadow.Close()
	if resp, _ := r.get("/m"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	r.awaitMetric("weir_mirrored_total", "failed", 1)
}

func TestFaultsAreInjected(t *testing.T) {
	r := newRuled(t)
	abort := func(a policy.FaultAbort) func(*policy.TrafficRule) {
		return func(rule *policy.TrafficRule) { rule.Fault = &policy.Fault{Abort: &a, Header: "X-Chaos"} }
	}
	r.rules(abort(policy.FaultAbort{Status: 418}))
	resp, body := r.get("/", "X-Chaos", "")
	if want(t, resp, 418, "fault-injected"); body != `{"error":"Fault injected by a traffic rule"}`+"\n" {
		t.Errorf("%q", body)
	}
	resp, _ = r.get("/")
	want(t, resp, 200, "")
	r.rules(abort(policy.FaultAbort{GRPCStatus: 14}))
	resp, _ = r.get("/", "X-Chaos", "1")
	if want(t, resp, 200, "fault-injected"); resp.Header.Get("grpc-status") != "14" || resp.Header.Get("Content-Type") != "application/grpc" {
		t.Errorf("%v", resp.Header)
	}
	r.rules(abort(policy.FaultAbort{Status: 500, Percent: ptr(0.0)}))
	resp, _ = r.get("/", "X-Chaos", "1")
	want(t, resp, 200, "")
	if n := r.metric("weir_faults_total", "abort"); n != 2 {
		t.Errorf("%d aborts are counted", n)
	}

	// A delay counts as the service's: it is part of the timeout.
	r.rules(func(rule *policy.TrafficRule) {
		rule.Timeout, rule.Fault = 0.05, &policy.Fault{Delay: &policy.FaultDelay{Seconds: 300}}
	})
	before := r.a.count() + r.b.count()
	resp, _ = r.get("/")
	if want(t, resp, 504, "timeout"); r.a.count()+r.b.count() != before {
		t.Error("a request whose time was over was sent")
	}
	r.rules(func(rule *policy.TrafficRule) {
		rule.Fault = &policy.Fault{Delay: &policy.FaultDelay{Seconds: 0.02}, Abort: &policy.FaultAbort{Status: 503}}
	})
	began := time.Now()
	resp, _ = r.get("/")
	if want(t, resp, 503, "fault-injected"); time.Since(began) < 20*time.Millisecond {
		t.Error("the delay came to nothing")
	}
}

// hangs answers nothing until the test ends.
// Nobody waits out a fault's delay for a client that left.
func TestAFaultsDelayEndsWithItsClient(t *testing.T) {
	r := newRuled(t)
	r.rules(func(rule *policy.TrafficRule) {
		rule.Timeout, rule.Fault = 0, &policy.Fault{Delay: &policy.FaultDelay{Seconds: 300}}
	})
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://users/", nil)
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan error)
	go func() { _, err := r.client.Do(req); left <- err }()
	r.awaitMetric("weir_faults_total", "delay", 1)
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.awaitMetric("weir_requests_total", "0", 1)
}

func hangs(t *testing.T) http.HandlerFunc {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	return func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}
}

func TestATryThatTakesTooLongIsMadeElsewhere(t *testing.T) {
	r := newRuled(t)
	r.a.does(hangs(t))
	r.rules(func(rule *policy.TrafficRule) { rule.PerTryTimeout, rule.RetryDelay = 0.25, ptr(0.0) })
	for range 4 {
		if resp, body := r.get("/"); resp.StatusCode != 200 || body != "b" {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
	if r.a.count() == 0 {
		t.Error("the slow one was never asked")
	}
	r.b.does(hangs(t))
	resp, _ := r.get("/")
	want(t, resp, 504, "timeout")
	// What may have had its effect is not sent again.
	before := r.a.count() + r.b.count()
	resp, _ = r.do("POST", "/", "x")
	if want(t, resp, 504, "timeout"); r.a.count()+r.b.count() != before+1 {
		t.Errorf("%d tries of a request that is not idempotent", r.a.count()+r.b.count()-before)
	}
}

func TestWhatIsLeftOfTheTimeIsPassedOn(t *testing.T) {
	r := newRuled(t)
	r.rules(func(rule *policy.TrafficRule) { rule.Timeout = 20 })
	left := func(header ...string) (http.Header, int) {
		t.Helper()
		r.get("/", header...)
		req := r.a.last()
		if b := r.b.last(); req == nil || b != nil && r.b.count() >= r.a.count() {
			req = b
		}
		ms, err := strconv.Atoi(req.Header.Get("weir-timeout-ms"))
		if err != nil {
			t.Fatal(err)
		}
		return req.Header, ms
	}
	if h, ms := left(); ms < 10_000 || ms > 20_000 || h.Get("grpc-timeout") != "" {
		t.Errorf("%d ms, %v", ms, h)
	}
	r.forget()
	if _, ms := left("weir-timeout-ms", "9000"); ms > 9_000 || ms < 1_000 {
		t.Errorf("%d ms of 9000 that were left", ms)
	}
	r.forget()
	if _, ms := left("weir-timeout-ms", "90000"); ms > 20_000 {
		t.Errorf("%d ms: a caller cannot have more than the rule gives", ms)
	}
	r.forget()
	h, ms := left("Content-Type", "application/grpc+proto", "grpc-timeout", "8S")
	if ms > 8_000 || h.Get("grpc-timeout") != strconv.Itoa(ms)+"m" {
		t.Errorf("%d ms, grpc-timeout %q", ms, h.Get("grpc-timeout"))
	}
	// A caller with less time than the rule gets its 504 when that is over.
	r.a.does(hangs(t))
	r.b.does(hangs(t))
	resp, _ := r.get("/", "weir-timeout-ms", "30")
	want(t, resp, 504, "timeout")
	// Without a time in the rule nothing is said.
	r.a.answer.Store(nil)
	r.b.answer.Store(nil)
	r.rules()
	r.forget()
	r.get("/")
	for _, app := range []*webApp{r.a, r.b} {
		if req := app.last(); req != nil && req.Header.Get("weir-timeout-ms") != "" {
			t.Errorf("%v", req.Header)
		}
	}
}

func TestGRPCTimeoutsAreRead(t *testing.T) {
	r := newRuled(t)
	r.a.does(hangs(t))
	r.b.does(hangs(t))
	r.rules(func(rule *policy.TrafficRule) { rule.Timeout = 60 })
	for _, text := range []string{"30m", "30000u", "30000000n"} {
		resp, _ := r.get("/", "Content-Type", "application/grpc", "grpc-timeout", text)
		want(t, resp, 504, "timeout")
	}
	r.rules(func(rule *policy.TrafficRule) { rule.Timeout = 0.03 })
	for _, text := range []string{"1H", "1M", "1S", "", "m", "99999999999m", "-1m", "5x"} { // longer, or none at all
		resp, _ := r.get("/", "Content-Type", "application/grpc", "grpc-timeout", text)
		want(t, resp, 504, "timeout")
	}
}

func TestAnAnswerThatPausesTooLongIsCut(t *testing.T) {
	r := newRuled(t)
	hang := hangs(t)
	for _, app := range []*webApp{r.a, r.b} {
		app.does(func(w http.ResponseWriter, req *http.Request) {
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			hang(w, req)
		})
	}
	r.rules(func(rule *policy.TrafficRule) { rule.IdleTimeout = 0.03 })
	resp, err := r.client.Get("http://users/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || !bool(inHTTP2) && !errors.Is(err, io.ErrUnexpectedEOF) || string(b) != "begun" {
		t.Errorf("%q %v", b, err)
	}
}

func retrying(words string, codes ...int) func(*policy.TrafficRule) {
	return func(rule *policy.TrafficRule) {
		rule.RetryOn, rule.RetryStatusCodes, rule.RetryDelay, rule.RetryAttempts = strings.Split(words, ","), codes, ptr(0.0), 2
	}
}

func TestARuleSaysWhatIsTriedAgain(t *testing.T) {
	answers := func(status int, fields ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(fields); i += 2 {
				w.Header().Set(fields[i], fields[i+1])
			}
			w.WriteHeader(status)
		}
	}
	cut := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for _, c := range []struct {
		name   string
		rule   func(*policy.TrafficRule)
		method string
		bad    http.HandlerFunc // what both answer at first
		status int
		tries  int
	}{
		{"5xx", retrying("5xx"), "GET", answers(500), 500, 2},
		{"5xx, no answer", retrying("5xx"), "GET", cut, 502, 2},
		{"5xx, not idempotent", retrying("5xx"), "POST", answers(503), 503, 1},
		{"gateway-error is not 500", retrying("gateway-error"), "GET", answers(500), 500, 1},
		{"gateway-error", retrying("gateway-error"), "GET", answers(503), 503, 2},
		{"reset", retrying("reset"), "GET", cut, 502, 2},
		{"reset is no answer", retrying("reset"), "GET", answers(503), 503, 1},
		{"connect-failure is before", retrying("connect-failure"), "GET", cut, 502, 1},
		{"codes", retrying("retriable-status-codes", 409), "GET", answers(409), 409, 2},
		{"codes, another", retrying("retriable-status-codes", 409), "GET", answers(503), 503, 1},
		{"gRPC", retrying("unavailable"), "POST", answers(200, "grpc-status", "14"), 200, 2},
		{"gRPC, another", retrying("unavailable"), "POST", answers(200, "grpc-status", "8"), 200, 1},
		{"gRPC, well", retrying("unavailable"), "POST", answers(200), 200, 1},
		{"Retry-After, now", retrying("5xx"), "GET", answers(503, "Retry-After", "0"), 503, 2},
		{"Retry-After, in the past", retrying("5xx"), "GET", answers(503, "Retry-After", "Mon, 02 Jan 2006 15:04:05 GMT"), 503, 2},
		{"Retry-After, too late", retrying("5xx"), "GET", answers(503, "Retry-After", "3600"), 503, 1},
		{"Retry-After, later than retry_max_delay", func(r *policy.TrafficRule) {
			retrying("5xx")(r)
			r.RetryMaxDelay = 0.5
		}, "GET", answers(503, "Retry-After", "1"), 503, 1},
		{"no conditions", func(r *policy.TrafficRule) {}, "GET", answers(503), 503, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRuled(t)
			r.rules(c.rule)
			r.a.does(c.bad)
			r.b.does(c.bad)
			body := ""
			if c.method == "POST" {
				body = "x"
			}
			resp, _ := r.do(c.method, "/", body)
			if n := r.a.count() + r.b.count(); resp.StatusCode != c.status || n != c.tries {
				t.Errorf("%d after %d tries, want %d after %d", resp.StatusCode, n, c.status, c.tries)
			}
			if c.tries == 2 && (r.a.count() != 1 || r.b.count() != 1) {
				t.Errorf("%d tries at a, %d at b", r.a.count(), r.b.count())
			}
		})
	}
}

func TestADialThatFailsIsAConnectFailure(t *testing.T) {
	for words, status := range map[string]int{"connect-failure": 200, "reset": 200, "retriable-status-codes": 502} {
		t.Run(words, func(t *testing.T) {
			r := newRuled(t)
			codes := []int{409}
			if words != "retriable-status-codes" {
				codes = nil
			}
			r.rules(retrying(words, codes...))
			r.a.leave(t)
			worst := 200
			for range 2 { // round robin: one of the two goes to a at first
				if resp, _ := r.do("POST", "/", "x"); resp.StatusCode != 200 {
					worst = resp.StatusCode
				}
			}
			if worst != status {
				t.Errorf("%d, want %d", worst, status)
			}
		})
	}
}

// sticky is a service with affinity.
func sticky(t *testing.T) *ruled {
	r := newRuled(t)
	r.traffic = func(tr *policy.Traffic) { tr.Affinity = policy.Affinity{Cookie: "at", TTL: time.Hour, Path: "/"} }
	r.rules()
	return r
}

func TestACookieKeepsAClientAtItsEndpoint(t *testing.T) {
	r := sticky(t)
	for _, app := range []*webApp{r.a, r.b} {
		name := app.name
		app.does(func(w http.ResponseWriter, _ *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "own", Value: "kept"})
			_, _ = io.WriteString(w, name)
		})
	}
	seen := map[string]string{}
	for range 4 {
		resp, body := r.get("/")
		set := resp.Header.Values("Set-Cookie")
		if len(set) != 2 || set[0] != "own=kept" || !strings.HasSuffix(set[1], "; Path=/; Max-Age=3600; HttpOnly") || !strings.HasPrefix(set[1], "at=") {
			t.Fatalf("Set-Cookie %q", set)
		}
		cookie, _, _ := strings.Cut(set[1], ";")
		if seen[body] != "" && seen[body] != cookie {
			t.Errorf("%s is %s and %s", body, seen[body], cookie)
		}
		seen[body] = cookie
	}
	if len(seen) != 2 || seen["a"] == seen["b"] || strings.Contains(seen["a"], "127") {
		t.Fatalf("cookies %v", seen)
	}
	for name, cookie := range seen {
		for range 4 {
			resp, body := r.get("/", "Cookie", "x=y; "+cookie+"; z=1")
			if set := resp.Header.Values("Set-Cookie"); body != name || len(set) != 1 {
				t.Errorf("the cookie of %s leads to %s, Set-Cookie %q", name, body, set)
			}
		}
	}
	for _, odd := range []string{"at=", "at=zz", "at=0", "at=123456789abcdef01", "at", "nat=" + seen["a"][3:]} {
		if resp, _ := r.get("/", "Cookie", odd); len(resp.Header.Values("Set-Cookie")) != 2 {
			t.Errorf("%q: Set-Cookie %q", odd, resp.Header.Values("Set-Cookie"))
		}
	}
}

func TestAClientWhoseEndpointFailsGetsAnother(t *testing.T) {
	r := sticky(t)
	cookies := map[string]string{}
	for range 2 {
		resp, body := r.get("/")
		cookies[body], _, _ = strings.Cut(resp.Header.Get("Set-Cookie"), ";")
	}
	r.a.does(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	resp, body := r.get("/", "Cookie", cookies["a"])
	if got, _, _ := strings.Cut(resp.Header.Get("Set-Cookie"), ";"); body != "b" || got != cookies["b"] {
		t.Errorf("%s, %q", body, got)
	}
	// And one whose endpoint is gone.
	svc := r.service()
	svc.Endpoints = svc.Endpoints[1:]
	if err := r.p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	resp, body = r.get("/", "Cookie", cookies["a"])
	if got, _, _ := strings.Cut(resp.Header.Get("Set-Cookie"), ";"); body != "b" || got != cookies["b"] {
		t.Errorf("%s, %q", body, got)
	}
}

// handledRules are rules that do something with each request of a path.
var handledRules = map[string]func(*policy.TrafficRule){
	"rewrite": func(r *policy.TrafficRule) { r.Rewrite = &policy.Rewrite{Path: "/v2", Host: "internal.test"} },
	"match":   func(r *policy.TrafficRule) { r.MatchQuery = map[string]string{"full": "1"}; r.IdleTimeout = 60 },
	"headers": func(r *policy.TrafficRule) {
		r.RequestHeaders = &policy.HeaderChanges{Set: map[string]string{"X-A": "b"}, Remove: []string{"Accept"}}
	},
	"response": func(r *policy.TrafficRule) {
		r.ResponseHeaders = &policy.HeaderChanges{Add: map[string]string{"X-A": "b"}, Remove: []string{"Server"}}
	},
	"times":   func(r *policy.TrafficRule) { r.Timeout, r.PerTryTimeout = 10, 5 },
	"retries": func(r *policy.TrafficRule) { r.RetryOn = []string{"5xx", "unavailable"} },
	"fault": func(r *policy.TrafficRule) {
		r.Fault = &policy.Fault{Header: "X-Chaos", Abort: &policy.FaultAbort{Status: 500}}
	},
}

// newHandledPath is the way of requests with a rule and, if so, affinity.
func newHandledPath(t testing.TB, change func(*policy.TrafficRule), affinity bool) *path {
	o := newPathOut(t)
	svc := *o.p.dests.Load().byName[users].svc
	rule := policy.DefaultTrafficRule()
	change(&rule)
	if p := rule.Validate(); len(p) > 0 {
		t.Fatal(p)
	}
	svc.Rules = []policy.TrafficRule{rule}
	if affinity {
		svc.Traffic.Affinity = policy.Affinity{Cookie: "at", Path: "/"}
	}
	if err := o.p.setService(users, &svc); err != nil {
		t.Fatal(err)
	}
	return o
}

// Requests with rules that do something cost no allocation either.
func TestAHandledRequestAllocatesNothing(t *testing.T) {
	for name, change := range handledRules {
		t.Run(name, func(t *testing.T) {
			o := newHandledPath(t, change, true)
			o.on(func() {
				o.requests(10)
				const many = 1000
				per := testing.AllocsPerRun(5, func() { o.requests(many) }) / many
				limit := 0.05 // of the connection itself
				if raceEnabled {
					limit = 20 // sync.Pool drops at random under the race detector
				}
				if per > limit {
					t.Errorf("%.3f allocations per request", per)
				}
			})
		})
	}
}

func BenchmarkHandledRequest(b *testing.B) {
	all := map[string]func(*policy.TrafficRule){"nothing": func(*policy.TrafficRule) {}}
	maps.Copy(all, handledRules)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		b.Run(name, func(b *testing.B) {
			o := newHandledPath(b, all[name], false)
			b.ReportAllocs()
			o.on(func() {
				o.requests(10)
				b.ResetTimer()
				o.requests(b.N)
				b.StopTimer()
			})
		})
	}
}
