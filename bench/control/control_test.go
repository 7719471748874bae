package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// The whole run in small: what it measures is not looked at, what it proves is.
func TestNothingIsLostInABurstAndARestart(t *testing.T) {
	bin := os.Getenv("WEIR_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	z := size{
		few: 40, all: 200, endpoints: 8, proxies: 50, follows: 20, applied: 2,
		changes: 20, every: 5 * time.Millisecond, hub: 10, hubEvery: 5 * time.Millisecond,
		idle: 50 * time.Millisecond, burst: 300, burstOver: 10, burstIn: 300 * time.Millisecond,
		checkEvery: time.Second,
	}
	rep, err := measure(t.Context(), bin, z, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if err := rep.failures(); err != nil {
		t.Error(err)
	}
	v := rep.values
	if followers := v["updates_per_change_all"]; followers < 20 {
		t.Errorf("a change reached %v proxies; each service has more followers", followers)
	}
	if v["restart_updates"] != 0 {
		t.Errorf("%v services came again after a restart, though nothing had changed", v["restart_updates"])
	}
	if first, again := v["connect_bytes_per_proxy"], v["restart_bytes_per_proxy"]; again > first/2 {
		t.Errorf("a proxy was sent %v bytes when it came first and %v when it came again with what it knew", first, again)
	}
	for _, f := range figures {
		if v, ok := rep.values[f.name]; f.name != "proxy_rss_ratio" && !strings.HasPrefix(f.name, "proxy_rss") && (!ok || math.IsNaN(v)) {
			t.Errorf("%s was not measured (%v)", f.name, v)
		}
	}
	for line := range strings.Lines(rep.lines()) {
		if !strings.HasPrefix(line, "measure=") || !strings.Contains(line, " value=") || !strings.Contains(line, " goal=") {
			t.Errorf("the line %q", line)
		}
	}
}

func TestALossEndsTheRun(t *testing.T) {
	r := &report{values: map[string]float64{"burst_lost": 0, "restart_services_lost": 0, "propagation_p99_ms": 1e6}}
	if err := r.failures(); err != nil {
		t.Errorf("a goal that is missed ends the run: %v", err)
	}
	r.values["burst_lost"] = 2
	if err := r.failures(); err == nil || !strings.Contains(err.Error(), "burst_lost is 2") {
		t.Errorf("a loss gives %v", err)
	}
}

func TestADigestTellsEndpointsApart(t *testing.T) {
	a, b := endpoint(1, 0, 100), endpoint(1, 1, 100)
	want := digestOf([]policy.Endpoint{a, b})
	seen := a
	seen.LastSeen = 17
	if digestOf([]policy.Endpoint{b, seen}) != want {
		t.Error("the order, or when an endpoint was last heard of, counts as a difference")
	}
	for name, change := range map[string]func(*policy.Endpoint){
		"weight": func(e *policy.Endpoint) { e.Weight++ },
		"port":   func(e *policy.Endpoint) { e.Port++ },
		"status": func(e *policy.Endpoint) { e.Status = policy.Unhealthy },
		"labels": func(e *policy.Endpoint) { e.Labels = nil },
	} {
		other := endpoint(1, 1, 100)
		change(&other)
		if digestOf([]policy.Endpoint{a, other}) == want {
			t.Errorf("another %s is no difference", name)
		}
	}
	if digestOf([]policy.Endpoint{a}) == want {
		t.Error("a missing endpoint is no difference")
	}
}

func TestEachServiceHasAboutAsManyFollowers(t *testing.T) {
	z := fullSize
	followers := z.followers()
	if len(followers[0]) != z.proxies {
		t.Errorf("the hub has %d followers of %d", len(followers[0]), z.proxies)
	}
	rest := followers[1:]
	fewest := len(slices.MinFunc(rest, func(a, b []int) int { return len(a) - len(b) }))
	most := len(slices.MaxFunc(rest, func(a, b []int) int { return len(a) - len(b) }))
	if mean := z.proxies * (z.follows - 1) / (z.few - 1); fewest < mean-2 || most > mean+2 {
		t.Errorf("services have %d to %d followers", fewest, most)
	}
	total := 0
	for s := range z.all {
		total += z.residents(s)
	}
	if total != z.proxies {
		t.Errorf("%d proxies stand beside services, not %d", total, z.proxies)
	}
	for p := range z.proxies {
		if !slices.Contains(z.followed(p), 0) || len(z.followed(p)) != z.follows {
			t.Fatalf("proxy %d follows %v", p, z.followed(p))
		}
	}
}

func TestAWaitEndsWithTheLastFollower(t *testing.T) {
	var n news
	n.expect(7, []int{1, 2})
	at := time.Unix(100, 0)
	n.heard(1, 7, at)
	n.heard(2, 6, at) // an older change
	n.heard(3, 7, at) // not a follower
	if n.done == nil {
		t.Fatal("it does not wait for the second follower")
	}
	n.heard(2, 8, at.Add(time.Second)) // a newer one, which holds it
	if last, err := n.wait(t.Context()); err != nil || !last.Equal(at.Add(time.Second)) {
		t.Errorf("the last heard at %v, %v", last, err)
	}
}
