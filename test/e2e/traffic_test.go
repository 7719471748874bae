package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// backend is an app whose behaviour a test chooses.
type backend struct {
	*app
	node *meshlab.Node

	status atomic.Int32 // 0 is 200
	delay  atomic.Int64 // ns before the answer
	cut    atomic.Bool  // close the connection in place of an answer

	mu   sync.Mutex // guards what follows
	hold chan struct{}
}

func newBackend(t *testing.T, n *meshlab.Node, name string, port int) *backend {
	b := &backend{node: n}
	b.app = serve(t, n, name, port, b.answer)
	return b
}

func (b *backend) answer(w http.ResponseWriter, r *http.Request) {
	b.note(r)
	b.mu.Lock()
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
	if d := time.Duration(b.delay.Load()); d > 0 {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	if b.cut.Load() {
		panic(http.ErrAbortHandler)
	}
	if code := b.status.Load(); code != 0 {
		w.WriteHeader(int(code))
	}
	_, _ = fmt.Fprintln(w, b.name)
}

// reset makes it a good backend again that has seen nothing.
func (b *backend) reset() {
	b.status.Store(0)
	b.delay.Store(0)
	b.cut.Store(false)
	b.mu.Lock()
	b.hold = nil
	b.mu.Unlock()
	b.forget()
}

// trafficMesh is a frontend in front of three endpoints of "users" (two of
// version v1, one of version v2 with twice the weight), and one of "orders".
type trafficMesh struct {
	*meshlab.Mesh
	front  *meshlab.Node
	users  []*backend // v1, v1, v2
	orders *backend
}

func newTrafficMesh(t *testing.T) *trafficMesh {
	m := &trafficMesh{Mesh: start(t)}
	for i, version := range []string{"v1", "v1", "v2"} {
		name := fmt.Sprintf("users%d", i+1)
		b := newBackend(t, bare(t, m.Mesh, name), name, 8001)
		w := meshlab.Workload{Host: name, Service: "users", Ports: []string{"8001"}, Labels: []string{"version=" + version}}
		if version == "v2" {
			w.Proxy = []string{"--weight", "200"}
		}
		enter(t, m.Mesh, b.node, w)
		m.users = append(m.users, b)
	}
	m.orders = newBackend(t, bare(t, m.Mesh, "orders"), "orders", 8002)
	enter(t, m.Mesh, m.orders.node, meshlab.Workload{Host: "orders", Service: "orders", Ports: []string{"8002"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	allow(t, m.Mesh, "frontend", "users")
	allow(t, m.Mesh, "frontend", "orders")
	// Waits as short as the tests; what is waited for is unit-tested.
	set(t, m.Mesh, `{"resilience":{"retry":{"delay":0.01}}}`)
	await(t, m.Mesh, "all endpoints", func() error {
		if got := curl(t, m.front, "http://orders/"); got != "orders\n" {
			return fmt.Errorf("orders answers %q", got)
		}
		curl(t, m.front, "http://users/")
		s, err := m.front.Status(t.Context())
		if err == nil && len(s.Services["default/users"].Endpoints) != 3 {
			err = fmt.Errorf("%d endpoints", len(s.Services["default/users"].Endpoints))
		}
		return err
	})
	return m
}

// reset forgets what a test before did.
func (m *trafficMesh) reset(t *testing.T) {
	t.Helper()
	for _, b := range append(slices.Clone(m.users), m.orders) {
		b.reset()
	}
	for _, service := range []string{"users", "orders"} {
		// Other settings of a circuit make it a new, closed one.
		m.balance(t, service, "least_conn", `,"circuit_breaker":{"enabled":false,"failure_threshold":5,"timeout":60}`)
		m.balance(t, service, "round_robin", `,"circuit_breaker":{"enabled":true,"failure_threshold":5,"timeout":60}`)
	}
}

// balance sets a strategy, with more settings of the service if given, and
// waits until the frontend's proxy has it. As a service's settings and rules
// travel together, what was changed before is then in force as well.
func (m *trafficMesh) balance(t *testing.T, service, strategy, more string) {
	t.Helper()
	between := "random"
	if strategy == between {
		between = "least_conn"
	}
	for _, s := range []string{between, strategy} { // so that the last is a change in any case
		set(t, m.Mesh, fmt.Sprintf(`{"services":{%q:{"strategy":%q%s}}}`, service, s, more))
		await(t, m.Mesh, service+" to be balanced by "+s, func() error {
			st, err := m.front.Status(t.Context())
			if got := st.Services["default/"+service].Strategy; err == nil && got != s {
				err = fmt.Errorf("it is by %q", got)
			}
			return err
		})
	}
}

// rules adds traffic rules, waits until they are in force and takes them away
// again at the end of the test.
func (m *trafficMesh) rules(t *testing.T, service string, rules ...policy.TrafficRule) {
	t.Helper()
	name := policy.ServiceName{Namespace: "default", Name: service}
	for _, r := range rules {
		id, err := m.API.AddTrafficRule(t.Context(), name, r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.API.DeleteTrafficRule(context.Background(), name, id); err != nil {
				t.Error(err)
			}
		})
	}
	m.balance(t, service, "round_robin", "")
}

func newRule(change func(*policy.TrafficRule)) policy.TrafficRule {
	r := policy.DefaultTrafficRule()
	change(&r)
	return r
}

// counts is how many requests each endpoint of users has seen.
func (m *trafficMesh) counts() [3]int {
	var out [3]int
	for i, b := range m.users {
		out[i] = b.count()
	}
	return out
}

// get sends n requests one after the other with one curl, whose connection is
// kept.
func (m *trafficMesh) get(t *testing.T, n int, args ...string) []string {
	t.Helper()
	last := len(args) - 1
	args[last] += fmt.Sprintf("?[1-%d]", n)
	return strings.Fields(curl(t, m.front, args...))
}

func TestTrafficGoesWhereItsSettingsSay(t *testing.T) {
	m := newTrafficMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *trafficMesh)
	}{
		{"RoundRobinIsExact", roundRobin},
		{"WeightedGoesByTheWeights", weighted},
		{"LeastConnAvoidsTheBusyEndpoint", leastConn},
		{"RandomReachesAll", random},
		{"ConsistentHashKeepsAPathAtItsEndpoint", consistentHash},
		{"P2CAvoidsASlowEndpoint", p2c},
		{"RulesMatchOnHeaderPathAndMethod", ruleMatches},
		{"TheFirstMatchWins", firstMatch},
		{"RulesWithTheSameMatchSplitByWeight", split},
		{"ARuleLeadsToAnotherService", otherService},
		{"ASubsetWithoutEndpointsIs503", noSubset},
		{"ASlowAnswerIs504", timeout},
		{"AFailingRequestIsTriedElsewhere", retries},
		{"ARequestThatWasSentIsRepeatedOnlyIfItMayBe", repeats},
		{"ADeadAppIs503", deadApp},
		{"ACircuitOpensAtFiveAndClosesAfterAProbe", circuit},
		{"AFailingEndpointIsLeftOutAndTheOthersCarryOn", outlier},
		{"TheRequestOverTheLimitIs429", rateLimit},
		{"ALimitByHeaderCountsEachValue", limitByHeader},
		{"AnUnhealthyEndpointIsLeftOutUntilItAnswers", healthChecks},
		{"MetricsCountWhatWasSent", metrics},
	} {
		t.Run(c.name, func(t *testing.T) { m.reset(t); c.run(t, m) })
	}
}

func roundRobin(t *testing.T, m *trafficMesh) {
	m.get(t, 30, "http://users/")
	if got := m.counts(); got != [3]int{10, 10, 10} {
		t.Errorf("30 requests went %v", got)
	}
	for range 6 { // a connection for each request makes no difference
		curl(t, m.front, "http://users/")
	}
	if got := m.counts(); got != [3]int{12, 12, 12} {
		t.Errorf("36 requests went %v", got)
	}
}

func weighted(t *testing.T, m *trafficMesh) {
	m.balance(t, "users", "weighted", "")
	m.get(t, 40, "http://users/")
	if got := m.counts(); got != [3]int{10, 10, 20} {
		t.Errorf("40 requests by weights 100, 100, 200 went %v", got)
	}
}

func leastConn(t *testing.T, m *trafficMesh) {
	m.balance(t, "users", "least_conn", "")
	hold := make(chan struct{})
	for _, b := range m.users {
		b.mu.Lock()
		b.hold = hold
		b.mu.Unlock()
	}
	held := make(chan error, 2)
	for range cap(held) {
		go func() {
			_, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "15", "http://users/held")
			held <- err
		}()
	}
	var busy [3]int
	await(t, m.Mesh, "two requests to be held", func() error {
		if busy = m.counts(); busy[0]+busy[1]+busy[2] != 2 {
			return fmt.Errorf("they are at %v", busy)
		}
		return nil
	})
	for _, b := range m.users {
		b.mu.Lock()
		b.hold = nil
		b.mu.Unlock()
	}
	m.get(t, 10, "http://users/")
	if slices.Max(busy[:]) != 1 {
		t.Errorf("the held requests went %v, not to two endpoints", busy)
	}
	after := m.counts()
	for i := range busy {
		if busy[i] == 1 && after[i] != 1 {
			t.Errorf("with %v busy, 10 requests more went to make %v", busy, after)
		}
	}
	close(hold)
	for range cap(held) {
		if err := <-held; err != nil {
			t.Error(err)
		}
	}
}

func random(t *testing.T, m *trafficMesh) {
	m.balance(t, "users", "random", "")
	m.get(t, 90, "http://users/")
	got := m.counts()
	if slices.Min(got[:]) == 0 || got[0]+got[1]+got[2] != 90 {
		t.Errorf("90 requests went %v", got)
	}
}

func consistentHash(t *testing.T, m *trafficMesh) {
	m.balance(t, "users", "consistent_hash", "")
	at := map[string]bool{}
	for i := range 12 {
		got := m.get(t, 3, fmt.Sprintf("http://users/item/%d", i))
		at[got[0]] = true
		if got[0] != got[1] || got[1] != got[2] {
			t.Errorf("path %d went to %v", i, got)
		}
	}
	if len(at) < 2 {
		t.Errorf("12 paths all went to %v", at)
	}
	m.balance(t, "users", "consistent_hash", `,"hash_key":"header:X-User"`)
	defer set(t, m.Mesh, `{"services":{"users":{"hash_key":""}}}`)
	clear(at)
	for i := range 12 {
		user := "X-User: u" + strconv.Itoa(i)
		a, b := curl(t, m.front, "-H", user, "http://users/a"), curl(t, m.front, "-H", user, "http://users/b")
		at[a] = true
		if a != b {
			t.Errorf("%s went to %q and %q", user, a, b)
		}
	}
	if len(at) < 2 {
		t.Errorf("12 users all went to %v", at)
	}
}

func p2c(t *testing.T, m *trafficMesh) {
	m.balance(t, "users", "p2c_ewma", "")
	m.users[0].delay.Store(int64(80 * time.Millisecond))
	m.get(t, 90, "http://users/")
	if got := m.counts(); got[0] > 15 {
		t.Errorf("with the first slow, 90 requests went %v", got)
	}
}

func ruleMatches(t *testing.T, m *trafficMesh) {
	for _, c := range []struct {
		name     string
		rule     policy.TrafficRule
		yes, not [][]string // curl's arguments
	}{
		{"header", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"version": "beta"} }),
			[][]string{{"-H", "Version: beta"}}, [][]string{{"-H", "Version: beta2"}, {"-H", "X: beta"}, {}}},
		{"header prefix", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"User-Agent": "prefix:Moz"} }),
			[][]string{{"-A", "Mozilla"}}, [][]string{{"-A", "curl"}}},
		{"header regex", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"X-User": "regex:[a-c]+[0-9]"} }),
			[][]string{{"-H", "X-User: abc1"}}, [][]string{{"-H", "X-User: abc12"}, {"-H", "X-User: d1"}}},
		{"header present", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"X-Canary": "present:"} }),
			[][]string{{"-H", "X-Canary: anything"}, {"-H", "X-Canary;"}}, [][]string{{}}},
		{"two headers", newRule(func(r *policy.TrafficRule) { r.MatchHeaders = map[string]string{"A": "1", "B": "2"} }),
			[][]string{{"-H", "B: 2", "-H", "A: 1"}}, [][]string{{"-H", "A: 1"}, {"-H", "B: 2"}}},
		{"path", newRule(func(r *policy.TrafficRule) { r.MatchPath = "/users/new" }),
			[][]string{{"http://users/users/new"}, {"http://users/users/new?a=b"}}, [][]string{{"http://users/users/newer"}, {"http://users/users"}}},
		{"path prefix", newRule(func(r *policy.TrafficRule) { r.MatchPath = "/beta/*" }),
			[][]string{{"http://users/beta/a/b"}}, [][]string{{"http://users/bet"}, {"http://users/x/beta/"}}},
		{"path regex", newRule(func(r *policy.TrafficRule) { r.MatchPath = "regex:/v[0-9]+/.*" }),
			[][]string{{"http://users/v12/x"}}, [][]string{{"http://users/va/x"}, {"http://users/x/v1/x"}}},
		{"method", newRule(func(r *policy.TrafficRule) { r.MatchMethod = "POST" }),
			[][]string{{"-d", "x"}}, [][]string{{}, {"-X", "PUT"}}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			c.rule.DestinationSubset = "v2"
			m.rules(t, "users", c.rule)
			try := func(args []string) []string {
				if len(args) == 0 || !strings.HasPrefix(args[len(args)-1], "http://") {
					args = append(args, "http://users/")
				}
				return append(strings.Fields(curl(t, m.front, args...)), strings.Fields(curl(t, m.front, args...))...)
			}
			for _, args := range c.yes {
				if got := try(args); got[0] != "users3" || got[1] != "users3" {
					t.Errorf("%v should match and went to %v", args, got)
				}
			}
			for _, args := range c.not {
				if got := try(args); got[0] == "users3" && got[1] == "users3" {
					t.Errorf("%v should not match and went to %v", args, got)
				}
			}
		})
	}
}

func firstMatch(t *testing.T, m *trafficMesh) {
	m.rules(t, "users",
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset = "/a/b*", "v2" }),
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset = "/a/*", "v1" }))
	if got := m.get(t, 4, "http://users/a/bc"); slices.ContainsFunc(got, func(s string) bool { return s != "users3" }) {
		t.Errorf("/a/bc went to %v", got)
	}
	if got := m.get(t, 4, "http://users/a/c"); slices.Contains(got, "users3") {
		t.Errorf("/a/c went to %v", got)
	}
}

func split(t *testing.T, m *trafficMesh) {
	part := func(subset string, weight int) policy.TrafficRule {
		return newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset, r.Weight = "/split*", subset, weight })
	}
	t.Run("80:20", func(t *testing.T) {
		m.reset(t)
		m.rules(t, "users", part("v1", 80), part("v2", 20))
		m.get(t, 300, "http://users/split")
		// 60 of 300 are expected, 7 is the standard deviation: six of them on each side.
		if got := m.counts(); got[2] < 60-42 || got[2] > 60+42 || got[0]+got[1]+got[2] != 300 {
			t.Errorf("300 requests split 80:20 went %v", got)
		}
	})
	t.Run("100:0", func(t *testing.T) {
		m.reset(t)
		m.rules(t, "users", part("v1", 100), part("v2", 0))
		m.get(t, 50, "http://users/split")
		if got := m.counts(); got != [3]int{25, 25, 0} {
			t.Errorf("50 requests split 100:0 went %v", got)
		}
	})
}

func otherService(t *testing.T, m *trafficMesh) {
	m.rules(t, "users", newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationService = "/orders*", "orders" }))
	if got := curl(t, m.front, "http://users/orders/1"); got != "orders\n" {
		t.Errorf("got %q", got)
	}
	m.orders.app.mu.Lock()
	defer m.orders.app.mu.Unlock()
	if s := m.orders.seen[len(m.orders.seen)-1]; s.Host != "users" || s.Target != "/orders/1" {
		t.Errorf("the app saw %+v", s)
	}
}

func noSubset(t *testing.T, m *trafficMesh) {
	m.rules(t, "users", newRule(func(r *policy.TrafficRule) { r.MatchPath, r.DestinationSubset = "/none", "v9" }))
	a := ask(t, m.front, "http://users/none")
	a.want(t, 503, "no-endpoints", `{"error":"No healthy endpoints available"}`+"\n")
	if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("X-Request-ID") == "" {
		t.Errorf("head %v", a.Header)
	}
}

func timeout(t *testing.T, m *trafficMesh) {
	m.rules(t, "users",
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.Timeout, r.RetryAttempts = "/slow", 0.2, 1 }),
		newRule(func(r *policy.TrafficRule) { r.MatchPath, r.Timeout = "/retried", 0.3 }))
	for _, b := range m.users {
		b.delay.Store(int64(20 * time.Second))
	}
	const want = `{"error":"Upstream timed out"}` + "\n"
	ask(t, m.front, "http://users/slow").want(t, 504, "timeout", want)
	ask(t, m.front, "-d", "x", "http://users/slow").want(t, 504, "timeout", want)
	ask(t, m.front, "http://users/retried").want(t, 504, "timeout", want) // the time is for all tries together
	for _, b := range m.users {
		b.delay.Store(0)
	}
	// The time is until the head: a body may take longer.
	slow := serve(t, m.orders.node, "drip", 8003, func(w http.ResponseWriter, _ *http.Request) {
		for range 5 {
			_, _ = fmt.Fprintln(w, "drip")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	defer slow.stop()
	register(t, m.Mesh, m.orders.node, "orders", "drip", 8003, "http")
	defer deregister(t, m.Mesh, "orders", "drip")
	m.balance(t, "orders", "round_robin", `,"timeout":0.3`)
	defer set(t, m.Mesh, `{"services":{"orders":{"timeout":0}}}`)
	if got := strings.Count(curl(t, m.front, "http://orders:8003/"), "drip"); got != 5 {
		t.Errorf("%d of 5 parts of a slow body came", got)
	}
}

func retries(t *testing.T, m *trafficMesh) {
	m.users[0].status.Store(503)
	m.users[1].cut.Store(true)
	for range 6 {
		if got := curl(t, m.front, "http://users/"); got != "users3\n" {
			t.Errorf("got %q", got)
		}
	}
	got := m.counts()
	if got[2] != 6 || got[0] == 0 || got[1] == 0 {
		t.Errorf("6 requests, of which the third can answer: %v", got)
	}
	m.reset(t)
	for _, b := range m.users {
		b.status.Store(500)
	}
	ask(t, m.front, "http://users/").want(t, 500, "", "") // the app's own answer after all tries
	if got := m.counts(); got[0]+got[1]+got[2] != 3 {
		t.Errorf("one request, three tries: %v", got)
	}
}

func repeats(t *testing.T, m *trafficMesh) {
	for _, c := range []struct {
		method string
		status int32
		cut    bool
		tries  int
	}{
		{"GET", 503, false, 3}, {"PUT", 503, false, 3}, {"DELETE", 503, false, 3},
		{"POST", 503, false, 1}, {"POST", 0, true, 1}, {"GET", 0, true, 3}, {"PATCH", 503, false, 1},
	} {
		m.reset(t)
		allMethodsOnce(t, m)
		for _, b := range m.users {
			b.status.Store(c.status)
			b.cut.Store(c.cut)
		}
		a := ask(t, m.front, "-X", c.method, "-d", "body", "http://users/")
		got := m.counts()
		n := got[0] + got[1] + got[2]
		if c.cut && n > c.tries && n <= 2*c.tries && c.method == "GET" {
			// A kept connection that ends without an answer looks like one that had
			// ended before: the proxy beside the app tries a new one at once.
			n = c.tries
		}
		if n != c.tries {
			t.Errorf("%s, status %d, cut %v: %d tries, want %d", c.method, c.status, c.cut, n, c.tries)
		}
		if c.cut {
			a.want(t, 502, "upstream-failure", `{"error":"Downstream service error"}`+"\n")
		}
		for _, b := range m.users {
			b.app.mu.Lock()
			for _, s := range b.seen {
				if s.Length != 4 {
					t.Errorf("%s: a try had a body of %d bytes", c.method, s.Length)
				}
			}
			b.app.mu.Unlock()
		}
	}
}

// allMethodsOnce lets the frontend use PATCH too.
func allMethodsOnce(t *testing.T, m *trafficMesh) {
	t.Helper()
	rules, err := m.API.SecurityRules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(rules, func(r policy.SecurityRule) bool { return slices.Contains(r.AllowedMethods, "*") }) {
		return
	}
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "users")); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "PATCH to be allowed", func() error {
		for range 3 {
			if a := ask(t, m.front, "-X", "PATCH", "http://users/"); a.Status != 200 {
				return fmt.Errorf("status %d", a.Status)
			}
		}
		return nil
	})
	for _, b := range m.users {
		b.forget()
	}
}

func deadApp(t *testing.T, m *trafficMesh) {
	n := bare(t, m.Mesh, "dead")
	a := serve(t, n, "dead", 8001, nil)
	enter(t, m.Mesh, n, meshlab.Workload{Host: "dead", Service: "dead", Ports: []string{"8001"}})
	allow(t, m.Mesh, "frontend", "dead")
	await(t, m.Mesh, "dead to live", func() error {
		if a := ask(t, m.front, "http://dead/"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	m.balance(t, "dead", "round_robin", `,"circuit_breaker":{"enabled":true,"failure_threshold":50,"timeout":60}`)
	a.stop()
	const want = `{"error":"Service unavailable"}` + "\n"
	ask(t, m.front, "-d", "x", "http://dead/").want(t, 503, "app-unavailable", want)
	ask(t, m.front, "http://dead/").want(t, 503, "app-unavailable", want)
	n.Proxy.Kill()
	ask(t, m.front, "-d", "x", "http://dead/").want(t, 502, "upstream-failure", `{"error":"Downstream service error"}`+"\n")
}

// circuitOf is the state of the only endpoint of a service at the frontend.
func (m *trafficMesh) circuitOf(t *testing.T, service string) string {
	t.Helper()
	s, err := m.front.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eps := s.Services["default/"+service].Endpoints
	if len(eps) != 1 {
		t.Fatalf("%s has %d endpoints", service, len(eps))
	}
	return eps[0].Circuit
}

func circuit(t *testing.T, m *trafficMesh) {
	m.balance(t, "orders", "round_robin", `,"circuit_breaker":{"enabled":true,"failure_threshold":5,"timeout":1}`)
	post := func(status int32) answer {
		m.orders.status.Store(status)
		return ask(t, m.front, "-d", "x", "http://orders/")
	}
	for range 8 {
		post(404).want(t, 404, "", "")
	}
	for range 4 {
		post(500)
	}
	post(200).want(t, 200, "", "orders\n") // a success clears the count
	for range 4 {
		post(500).want(t, 500, "", "")
	}
	if got := m.circuitOf(t, "orders"); got != "closed" {
		t.Fatalf("after 4 failures in a row the circuit is %s", got)
	}
	post(500).want(t, 500, "", "")
	if got := m.circuitOf(t, "orders"); got != "open" {
		t.Fatalf("after 5 failures in a row the circuit is %s", got)
	}
	before := m.orders.count()
	post(0).want(t, 503, "circuit-open", `{"error":"Circuit is open for orders.default"}`+"\n")
	if m.orders.count() != before {
		t.Error("a request passed the open circuit")
	}
	await(t, m.Mesh, "the circuit to let a probe pass", func() error {
		if a := post(500); a.Status == 503 {
			return fmt.Errorf("%s", a.Body)
		}
		return nil
	})
	if got := m.circuitOf(t, "orders"); got != "open" {
		t.Errorf("after a failed probe the circuit is %s", got)
	}
	post(0).want(t, 503, "circuit-open", "")
	await(t, m.Mesh, "the circuit to close", func() error {
		if a := post(0); a.Status != 200 {
			return fmt.Errorf("%s", a.Body)
		}
		return nil
	})
	if got := m.circuitOf(t, "orders"); got != "closed" {
		t.Errorf("after a good probe the circuit is %s", got)
	}
	for range 4 { // the count is cleared
		post(500)
	}
	post(0).want(t, 200, "", "")
}

func outlier(t *testing.T, m *trafficMesh) {
	m.users[0].status.Store(500)
	failed := 0
	for _, got := range m.get(t, 60, "-o", "/dev/null", "-w", "%{http_code} ", "http://users/") {
		if got != "200" {
			failed++
		}
	}
	if got := m.counts(); failed != 0 || got[0] != 5 {
		t.Errorf("%d errors; the failing endpoint saw %d requests, then its circuit should be open", failed, got[0])
	}
}

func rateLimit(t *testing.T, m *trafficMesh) {
	m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":5,"window":60}`)
	defer m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":0}`)
	for i := range 5 {
		a := ask(t, m.front, "http://orders/")
		a.want(t, 200, "", "orders\n")
		if got, want := a.Header.Get("RateLimit"), fmt.Sprintf(`"default";r=%d;t=`, 4-i); !strings.HasPrefix(got, want) {
			t.Errorf("RateLimit of request %d: %s, want %s…", i+1, got, want)
		}
	}
	a := ask(t, m.front, "http://orders/")
	a.want(t, 429, "rate-limited", `{"error":"Rate limit exceeded for orders.default"}`+"\n")
	after, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil || after < 1 || after > 60 || a.Header.Get("RateLimit-Policy") != `"default";q=5;w=60` ||
		!strings.HasPrefix(a.Header.Get("RateLimit"), `"default";r=0;t=`) || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("head %v", a.Header)
	}
	if m.orders.count() != 5 {
		t.Errorf("the app saw %d requests", m.orders.count())
	}
}

func limitByHeader(t *testing.T, m *trafficMesh) {
	m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":2,"window":60,"key":"header:X-User"}`)
	defer m.balance(t, "orders", "round_robin", `,"rate_limit":{"limit":0}`)
	for _, user := range []string{"a", "b"} {
		var got []int
		for range 3 {
			got = append(got, ask(t, m.front, "-H", "X-User: "+user, "http://orders/").Status)
		}
		if fmt.Sprint(got) != "[200 200 429]" {
			t.Errorf("user %s got %v", user, got)
		}
	}
}

func healthChecks(t *testing.T, m *trafficMesh) {
	n := bare(t, m.Mesh, "checked")
	healthy := atomic.Bool{}
	healthy.Store(true)
	ln, err := n.ListenTCP(":8001")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/alive" && !healthy.Load() {
			w.WriteHeader(500)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	defer func() { _ = srv.Close(); <-done }()
	enter(t, m.Mesh, n, meshlab.Workload{Host: "checked", Service: "checked", Ports: []string{"8001"}, Proxy: []string{"--health-path", "/alive"}})
	allow(t, m.Mesh, "frontend", "checked")
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":0.1}}}`)
	defer set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":30}}}`)
	for _, want := range []struct {
		ok     bool
		status int
		word   string
	}{{true, 200, "healthy"}, {false, 503, "unhealthy"}, {true, 200, "healthy"}} {
		healthy.Store(want.ok)
		await(t, m.Mesh, "the endpoint to be "+want.word, func() error {
			eps, err := m.API.Endpoints(t.Context(), policy.ServiceName{Namespace: "default", Name: "checked"})
			if err != nil || len(eps) != 1 || eps[0].Status != want.word {
				return fmt.Errorf("%+v, %w", eps, err)
			}
			if a := ask(t, m.front, "http://checked/"); a.Status != want.status {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			return nil
		})
	}
}

func metrics(t *testing.T, m *trafficMesh) {
	// A health check is a request to the app too; the last may be under way still.
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	var after meshlab.ProxyMetrics
	await(t, m.Mesh, "20 requests to be counted as 20", func() error {
		before, err1 := m.front.Metrics(t.Context())
		app, err2 := m.orders.node.Metrics(t.Context())
		m.get(t, 20, "http://orders/")
		var err3 error
		after, err3 = m.front.Metrics(t.Context())
		appAfter, err4 := m.orders.node.Metrics(t.Context())
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		if n := after.OutboundRequests - before.OutboundRequests; n != 20 {
			t.Errorf("20 requests counted as %d", n)
		}
		if n := appAfter.InboundRequests - app.InboundRequests; n != 20 {
			return fmt.Errorf("at the app's side they are %d", n)
		}
		return nil
	})
	await(t, m.Mesh, "the control plane to sum it up", func() error {
		sum, err := m.API.Metrics(t.Context())
		if err != nil {
			return err
		}
		if b, _ := json.Marshal(sum); uint64(sum.Proxies.TotalOutboundRequests) < after.OutboundRequests {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	text := curl(t, m.front, "http://127.0.0.1:15000/metrics")
	if !strings.Contains(text, "# TYPE ") || !strings.Contains(text, `orders`) {
		t.Errorf("Prometheus text without orders:\n%.1000s", text)
	}
}

func TestALimitBySourceCountsEachCaller(t *testing.T) {
	m := start(t)
	b := newBackend(t, bare(t, m, "users"), "users", 8001)
	enter(t, m, b.node, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}})
	allow(t, m, "*", "users")
	set(t, m, `{"services":{"users":{"rate_limit":{"limit":3,"window":60,"key":"source"}}}}`)
	for _, name := range []string{"one", "two"} {
		n := join(t, m, meshlab.Workload{Host: name, Service: name})
		var got []int
		for range 4 {
			got = append(got, ask(t, n, "http://users/").Status)
		}
		if fmt.Sprint(got) != "[200 200 200 429]" {
			t.Errorf("%s got %v", name, got)
		}
		if a := ask(t, n, "http://users/"); a.Body != `{"error":"Rate limit exceeded for users.default"}`+"\n" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s got %+v", name, a)
		}
	}
}
