package e2e

import (
	"context"
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
	t.Parallel()
	m := newTrafficMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *trafficMesh)
	}{
		{"P2CAvoidsASlowEndpoint", p2c}, // before others make endpoints look slow
		{"RoundRobinIsExact", roundRobin},
		{"WeightedGoesByTheWeights", weighted},
		{"LeastConnAvoidsTheBusyEndpoint", leastConn},
		{"RandomReachesAll", random},
		{"ConsistentHashKeepsAPathAtItsEndpoint", consistentHash},
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
	var busy [3]int
	for i := range cap(held) { // one after the other: at the same time both may find all idle
		go func() {
			_, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "15", "http://users/held")
			held <- err
		}()
		await(t, m.Mesh, "a request to be held", func() error {
			if busy = m.counts(); busy[0]+busy[1]+busy[2] != i+1 {
				return fmt.Errorf("they are at %v", busy)
			}
			return nil
		})
	}
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
	m.users[0].delay.Store(int64(250 * time.Millisecond))
	m.get(t, 90, "http://users/")
	if got := m.counts(); got[0] > 15 {
		t.Errorf("with the first slow, 90 requests went %v", got)
	}
}
