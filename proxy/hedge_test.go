package proxy

import (
	"net/http"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// hangsUntilCut answers nothing, and tells when its caller went away.
func hangsUntilCut(t *testing.T) (h http.HandlerFunc, cut chan struct{}) {
	cut = make(chan struct{}, 1000)
	hang := hangs(t)
	return func(w http.ResponseWriter, r *http.Request) {
		hang(w, r)
		cut <- struct{}{}
	}, cut
}

func TestALateRequestIsSentToASecondEndpoint(t *testing.T) {
	r := newRuled(t)
	r.traffic = func(tr *policy.Traffic) {
		tr.Breaker = policy.Breaker{Enabled: true, Threshold: 1, Timeout: time.Minute}
		tr.Retry.Attempts = 1
	}
	r.rules(func(rule *policy.TrafficRule) {
		rule.Hedge, rule.Timeout = &policy.Hedge{After: 0.02, Percent: ptr(100.0)}, 30
		rule.RequestHeaders = &policy.HeaderChanges{Set: map[string]string{"X-Set": "1"}}
	})
	slow, cut := hangsUntilCut(t)
	r.a.does(slow)
	for range 4 { // in turn, so that some go to a first
		if resp, body := r.get("/x"); resp.StatusCode != 200 || body != "b" {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
	if n := r.metric("weir_hedged_total", "won"); n == 0 || n > r.a.count() {
		t.Errorf("%d hedges won, %d requests came to a", n, r.a.count())
	}
	for range r.a.count() {
		<-cut
	}
	for _, req := range r.b.all() {
		if req.Header.Get("X-Set") != "1" || req.Header.Get("X-Source-Service") != "front" || req.RequestURI != "/x" {
			t.Errorf("%s %v", req.RequestURI, req.Header)
		}
	}
	// To be late is no failure: the circuit of a, which one failure opens, is closed.
	if e := r.p.dests.Load().byName[users].choose("", 0).endpoints[0]; e.circuit.State(time.Now()).String() != "closed" {
		t.Errorf("the circuit is %v", e.circuit.State(time.Now()))
	}
	// A PUT with its body, too.
	for range 2 {
		if resp, body := r.do("PUT", "/", "payload"); resp.StatusCode != 200 || body != "b" {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
	if got := r.b.lastBody(); got != "payload" {
		t.Errorf("b got %q", got)
	}
}

// gRPC knows POST only, so a rule that hedges calls speaks for their method.
func TestACallOfGRPCIsSentToASecondEndpoint(t *testing.T) {
	inHTTP2 = true
	t.Cleanup(func() { inHTTP2 = false })
	r := newRuled(t)
	r.rules(func(rule *policy.TrafficRule) {
		rule.Hedge, rule.Timeout = &policy.Hedge{After: 0.02, Percent: ptr(100.0)}, 30
	})
	slow, cut := hangsUntilCut(t)
	r.a.does(slow)
	for r.a.count() == 0 {
		if _, body := r.do("POST", "/pkg.Service/Method", "call", "Content-Type", "application/grpc+proto"); body != "b" {
			t.Fatalf("%q", body)
		}
	}
	<-cut
	if got := r.b.lastBody(); got != "call" {
		t.Errorf("b got %q", got)
	}
}

func TestWhatIsNotSentTwice(t *testing.T) {
	r := newRuled(t)
	hedged := func(after float64, percent float64) func(*policy.TrafficRule) {
		return func(rule *policy.TrafficRule) {
			rule.Hedge, rule.Timeout, rule.RetryAttempts = &policy.Hedge{After: after, Percent: &percent}, 0.1, 1
		}
	}
	r.rules(hedged(0.01, 100))
	slow, _ := hangsUntilCut(t)
	r.a.does(slow)
	r.b.does(slow)
	resp, _ := r.do("POST", "/", "x")
	if want(t, resp, 504, "timeout"); r.a.count()+r.b.count() != 1 {
		t.Errorf("a POST was sent %d times", r.a.count()+r.b.count())
	}
	// Two at the most, even if both are late.
	r.forget()
	resp, _ = r.get("/")
	if want(t, resp, 504, "timeout"); r.a.count() != 1 || r.b.count() != 1 {
		t.Errorf("%d at a, %d at b", r.a.count(), r.b.count())
	}
	// What is over the budget: one a second is always allowed, of the last ten.
	r.rules(hedged(0.01, 0.1))
	r.forget()
	const many = 15
	for range many {
		r.get("/")
	}
	if n := r.a.count() + r.b.count(); n != many+10 {
		t.Errorf("%d requests were sent %d times", many, n)
	}
	if n := r.metric("weir_hedged_total", "budget"); n != many-10 {
		t.Errorf("%d are counted over the budget", n)
	}
	// Where there is one endpoint only.
	svc := r.service()
	svc.Endpoints = svc.Endpoints[:1]
	rule := policy.DefaultTrafficRule()
	hedged(0.01, 100)(&rule)
	svc.Rules = []policy.TrafficRule{rule}
	if err := r.p.setService(users, svc); err != nil {
		t.Fatal(err)
	}
	r.forget()
	if r.get("/"); r.a.count() != 1 {
		t.Errorf("sent %d times to the one endpoint", r.a.count())
	}
}

func TestHedgesGoByWhatRequestsTake(t *testing.T) {
	r := newRuled(t)
	change := func(rule *policy.TrafficRule) {
		rule.Hedge, rule.Timeout, rule.ID = &policy.Hedge{Percentile: 90, Percent: ptr(100.0)}, 10, "p90"
	}
	r.rules(change)
	h := r.p.dests.Load().byName[users].hedges["p90"]
	for range 100 { // until then nobody knows what late is
		r.get("/")
	}
	if _, known := h.after(); !known || r.a.count()+r.b.count() != 100 {
		t.Fatalf("known %v, %d requests", known, r.a.count()+r.b.count())
	}
	r.rules(change)
	if r.p.dests.Load().byName[users].hedges["p90"] != h {
		t.Error("a change of the service forgets what its requests take")
	}
	slow, cut := hangsUntilCut(t)
	r.a.does(slow)
	r.forget()
	for n := 0; r.a.count() == 0; n++ { // a hedge takes its turn too, so that it may be a's late
		if resp, body := r.get("/"); resp.StatusCode != 200 || body != "b" || n == 100 {
			t.Fatalf("%d %q, request %d", resp.StatusCode, body, n)
		}
	}
	<-cut
	r.rules(func(rule *policy.TrafficRule) { change(rule); rule.Hedge.Percentile = 99 })
	if r.p.dests.Load().byName[users].hedges["p90"] == h {
		t.Error("another percentile has the old one's estimate")
	}
}
