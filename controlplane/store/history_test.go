package store

import (
	cryptorand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weir-mesh/weir/policy"
)

func TestTheHistoryTellsWhoWhenAndWhat(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := open(t, func(c *Config) { c.Now = func() time.Time { return now } })
	ctx := t.Context()
	first := edit(t, s, addRule("cart", "r", 1), addEndpoint("cart", "e", 1)).Revision
	out, err := s.Change(WithAuthor(ctx, policy.Author{Who: policy.ByFile, Name: "mesh.yaml"}), []policy.Edit{addRule("cart", "r", 2)}, false)
	must(t, err)
	// None of these is a change of what somebody wants.
	must(t, s.SetStatus(ctx, "shop", "cart", "e", policy.Unhealthy))
	edit(t, s, addRule("cart", "r", 2))
	must(t, s.UpdateSettings(ctx, []byte(`{"egress":"allow"}`)))

	list, err := s.History(ctx, 0, 10)
	must(t, err)
	if len(list) != 2 || list[0].Revision != out.Revision || list[1].Revision != first {
		t.Fatalf("the history is %+v", list)
	}
	if r := list[0]; r.Who != policy.ByFile || r.Name != "mesh.yaml" || r.Time != 1_700_000_000 || r.Total != 1 ||
		r.Changes[0].Action != policy.Changed || r.Changes[0].Before != nil {
		t.Errorf("the newest is %+v", r)
	}
	if r := list[1]; r.Who != policy.ByAdmin || r.Total != 2 {
		t.Errorf("the first is %+v", r)
	}
	if list, err := s.History(ctx, out.Revision, 10); err != nil || len(list) != 1 || list[0].Revision != first {
		t.Errorf("before the newest: %+v, %v", list, err)
	}
	r, err := s.Revision(ctx, out.Revision)
	must(t, err)
	if d := r.Changes[0]; d.Before.Traffic.Weight != 1 || d.After.Traffic.Weight != 2 || d.ID != "r" {
		t.Errorf("what changed: %+v", d)
	}
	if _, err := s.Revision(ctx, out.Revision+1000); !errors.Is(err, ErrNotFound) {
		t.Errorf("a revision to come: %v", err)
	}
	if svc := s.State().Services.Get(shop("cart")); svc.RuleRevisions[0] != out.Revision {
		t.Errorf("the rule's version is %d, its change's %d", svc.RuleRevisions[0], out.Revision)
	}
}

func TestWhatProxiesRegisterIsHistoryAndTheirComingBackIsNot(t *testing.T) {
	s, ctx := open(t), t.Context()
	attach(t, s, "p", endpoint("cart", "a"))
	attach(t, s, "p", endpoint("cart", "a"))
	e := endpoint("cart", "a")
	e.Weight = 7
	l := attach(t, s, "p", e)
	must(t, l.Close(ctx))
	list, err := s.History(ctx, 0, 10)
	must(t, err)
	if len(list) != 2 || list[0].Who != policy.ByProxy || list[0].Name != "shop/cart/p" || list[0].Changes[0].Action != policy.Changed || list[1].Changes[0].Action != policy.Added {
		t.Errorf("the history is %+v", list)
	}
}

func TestARollbackBringsBackWhatWasAndIsAChangeItself(t *testing.T) {
	s, ctx := open(t), t.Context()
	edit(t, s, addRule("cart", "a", 1), addRule("cart", "b", 2), addRule("cart", "c", 3), addEndpoint("cart", "e", 1))
	good := edit(t, s, policy.Edit{Ref: configRef, Patch: []byte(`{"egress":"deny"}`)}).Revision
	edit(t, s, policy.Edit{Ref: trafficRef(shop("cart"), "a")}, addRule("cart", "b", 9), addRule("cart", "d", 4))
	edit(t, s, addRule("cart", "d", 5), policy.Edit{Ref: configRef, Patch: []byte(`{"egress":"allow","mtls_mode":"permissive"}`)})
	must(t, s.DeleteEndpoint(ctx, "shop", "cart", "e"))
	attach(t, s, "p", endpoint("cart", "leased"))
	bad := lastRevision(t, s)

	dry, err := s.Rollback(ctx, good, true)
	must(t, err)
	if len(dry.Differences) != 5 || ruleIDs(s.State(), "cart") != "b c d" {
		t.Errorf("a dry run: %+v, then the rules are %s", dry, ruleIDs(s.State(), "cart"))
	}
	out, err := s.Rollback(ctx, good, false)
	must(t, err)
	svc := s.State().Services.Get(shop("cart"))
	if ruleIDs(s.State(), "cart") != "a b c" || svc.Rules[1].Weight != 2 || s.State().Settings.Egress != "deny" || s.State().Settings.MTLSMode != policy.Strict {
		t.Errorf("after the rollback: %s, %+v, %+v", ruleIDs(s.State(), "cart"), svc, s.State().Settings)
	}
	if len(svc.Endpoints) != 2 || svc.Endpoints[0].ID != "e" || svc.Endpoints[0].Status != policy.Healthy || !svc.Endpoints[1].Leased {
		t.Errorf("the endpoints are %+v", svc.Endpoints)
	}
	list, err := s.History(ctx, 0, 1)
	must(t, err)
	if r := list[0]; r.Revision != out.Revision || r.Who != policy.ByRollback || r.Name != fmt.Sprintf("to revision %d", good) || r.Total != 5 {
		t.Errorf("the newest change is %+v", r)
	}
	// And back again.
	_, err = s.Rollback(ctx, bad, false)
	must(t, err)
	if st := s.State(); ruleIDs(st, "cart") != "b c d" || st.Services.Get(shop("cart")).Rules[2].Weight != 5 || st.Settings.Egress != "allow" || len(st.Services.Get(shop("cart")).Endpoints) != 1 {
		t.Errorf("after the second: %s, %+v", ruleIDs(st, "cart"), st.Services.Get(shop("cart")))
	}
	for _, r := range []int64{-1, lastRevision(t, s) + 1000} {
		if _, err := s.Rollback(ctx, r, false); !errors.Is(err, ErrNotFound) {
			t.Errorf("to revision %d: %v", r, err)
		}
	}
}

// Whatever was done, going back gives exactly what was, in its order.
func TestARollbackToAnyRevisionGivesTheStateOfThatRevision(t *testing.T) {
	s := open(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	states := map[int64]string{}
	note := func(revision int64) {
		if revision > 0 {
			states[revision] = wanted(t, s.State())
		}
	}
	any := func() policy.Edit {
		service, id := fmt.Sprint("s", rnd.IntN(2)), fmt.Sprint(rnd.IntN(4))
		switch rnd.IntN(6) {
		case 0:
			return policy.Edit{Ref: trafficRef(shop(service), id)}
		case 1:
			return addEndpoint(service, id, 1+rnd.IntN(3))
		case 2:
			return policy.Edit{Ref: policy.Ref{Kind: policy.KindEndpoint, Namespace: "shop", Service: service, ID: id}}
		case 3:
			return policy.Edit{Ref: configRef, Patch: fmt.Appendf(nil, `{"global_timeout":%d}`, 1+rnd.IntN(5))}
		default:
			return addRule(service, id, rnd.IntN(3))
		}
	}
	for range 120 {
		edits := []policy.Edit{any()}
		if second := any(); second.Ref != edits[0].Ref {
			edits = append(edits, second)
		}
		out, err := s.Change(t.Context(), edits, false)
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		note(out.Revision)
		if revisions := slices.Sorted(maps.Keys(states)); rnd.IntN(4) == 0 && len(revisions) > 0 {
			to := revisions[rnd.IntN(len(revisions))]
			out, err := s.Rollback(t.Context(), to, false)
			must(t, err)
			if got := wanted(t, s.State()); got != states[to] {
				t.Fatalf("back at revision %d:\n%s\nit was:\n%s", to, got, states[to])
			}
			note(out.Revision)
			if d, err := s.Between(t.Context(), to, 0); err != nil || len(d) != 0 {
				t.Fatalf("back at revision %d, and yet %+v differs, %v", to, d, err)
			}
		}
	}
}

func TestBetweenTellsTheNetDifferenceInBothDirections(t *testing.T) {
	s, ctx := open(t), t.Context()
	first := edit(t, s, addRule("cart", "stays", 1), addRule("cart", "goes", 1)).Revision
	edit(t, s, addRule("cart", "stays", 2), addRule("cart", "comes", 1), addRule("cart", "flickers", 1))
	second := edit(t, s, addRule("cart", "stays", 3), policy.Edit{Ref: trafficRef(shop("cart"), "goes")}, policy.Edit{Ref: trafficRef(shop("cart"), "flickers")}).Revision
	third := edit(t, s, addRule("cart", "stays", 1)).Revision
	for _, c := range []struct {
		from, to int64
		want     string
	}{
		{first, second, "stays changed 1 3, comes added 0 1, goes removed 1 0"},
		{second, first, "stays changed 3 1, comes removed 1 0, goes added 0 1"},
		{first, third, "comes added 0 1, goes removed 1 0"},
		{second, 0, "stays changed 3 1"},
		{third, 0, ""},
	} {
		differences, err := s.Between(ctx, c.from, c.to)
		must(t, err)
		weight := func(r *policy.Resource) int {
			if r == nil {
				return 0
			}
			return r.Traffic.Weight
		}
		var got []string
		for _, d := range differences {
			got = append(got, fmt.Sprint(d.ID, " ", d.Action, " ", weight(d.Before), " ", weight(d.After)))
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%d to %d: %s, want %s", c.from, c.to, strings.Join(got, ", "), c.want)
		}
	}
}

// wanted is what people wrote of a state: without versions, status and times.
func wanted(t *testing.T, st *State) string {
	t.Helper()
	out := []any{st.Settings.Resilience}
	var names []policy.ServiceName
	for name := range st.Services.All() {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b policy.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	for _, name := range names {
		svc := st.Services.Get(name)
		out = append(out, name, svc.Rules)
		for _, e := range svc.Endpoints {
			out = append(out, e.ID, e.Port)
		}
	}
	b, err := json.Marshal(out)
	must(t, err)
	return string(b)
}

func TestTheHistoryIsBoundedAndSaysSo(t *testing.T) {
	s, ctx := open(t, func(c *Config) { c.History = 20 }), t.Context()
	early := edit(t, s, addRule("cart", "r", 1)).Revision
	for i := range pruneEvery + 10 {
		edit(t, s, addRule("cart", "r", i+2))
	}
	late := lastRevision(t, s)
	for i := range 2 * pruneEvery {
		e := endpoint("cart", "a")
		e.Weight = i
		attach(t, s, "p", e)
	}
	for prefix, most := range map[string]int64{s.keys.log(operators): 20 + pruneEvery, s.keys.diff(operators): 20 + pruneEvery, s.keys.log(proxies): 10 + pruneEvery, s.keys.diff(proxies): 10 + pruneEvery} {
		resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		must(t, err)
		if resp.Count > most || resp.Count == 0 {
			t.Errorf("%d changes under %s, at most %d are to be kept", resp.Count, prefix, most)
		}
	}
	for what, err := range map[string]error{
		"a rollback": func() error { _, err := s.Rollback(ctx, early, false); return err }(),
		"a look":     func() error { _, err := s.Revision(ctx, early); return err }(),
	} {
		if !errors.Is(err, ErrForgotten) || !strings.Contains(err.Error(), "it begins after revision") {
			t.Errorf("%s too far back: %v", what, err)
		}
	}
	// What proxies did did not push out what operators did.
	if _, err := s.Revision(ctx, late); err != nil {
		t.Error(err)
	}
	if _, err := s.Rollback(ctx, late-1, false); err != nil {
		t.Error(err)
	}
}

func TestTheHistoryIsBoundedByItsSizeToo(t *testing.T) {
	s, ctx := open(t, func(c *Config) { c.historyBytes = 32 << 10 }), t.Context()
	var last policy.Outcome
	for i := range 100 { // half a KiB each, as JSON with what was before
		last = edit(t, s, addRule("cart", "r", i+1))
	}
	resp, err := s.client.Get(ctx, s.keys.diff(operators), clientv3.WithPrefix())
	must(t, err)
	total := 0
	for _, kv := range resp.Kvs {
		total += len(kv.Value)
	}
	if most := 32<<10 + 32<<10/pruneParts + 2048; total > most || len(resp.Kvs) < 10 {
		t.Errorf("%d changes of %d bytes are kept, which are to be at most %d", len(resp.Kvs), total, most)
	}
	_, err = s.Revision(ctx, last.Revision)
	must(t, err)
	// The newest is kept whatever its size.
	var many []policy.Edit
	for i := range 60 {
		e := addRule("cart", fmt.Sprint("many", i), i+1)
		for range 40 {
			e.To.Traffic.MatchPath += "/" + cryptorand.Text() // cannot be compressed
		}
		many = append(many, e)
	}
	out, err := s.Change(ctx, many, false)
	must(t, err)
	if list, err := s.History(ctx, 0, 10); err != nil || len(list) == 0 || list[0].Revision != out.Revision {
		t.Errorf("the newest change is not in the history: %+v %v", list, err)
	}
}

func TestAnEndpointThatAProxyTookOverIsBroughtBackOnlyWhenTheProxyIsGone(t *testing.T) {
	s, ctx := open(t), t.Context()
	mine := edit(t, s, addEndpoint("cart", "a", 1)).Revision
	l := attach(t, s, "p", endpoint("cart", "a"))
	out, err := s.Rollback(ctx, mine, false)
	must(t, err)
	if e := s.State().Services.Get(shop("cart")).Endpoints[0]; !e.Leased || len(out.Differences) != 0 {
		t.Errorf("the proxy's endpoint is %+v after %+v", e, out)
	}
	must(t, l.Close(ctx))
	_, err = s.Rollback(ctx, mine, false)
	must(t, err)
	if e := s.State().Services.Get(shop("cart")).Endpoints[0]; e.Leased || e.Port != 1 {
		t.Errorf("the endpoint is %+v", e)
	}
}

// While others write, a rollback takes back all that is there when it is made,
// theirs too: nothing of after the revision is left beside it.
func TestARollbackTakesBackWhatIsWrittenMeanwhile(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	good := edit(t, a, addRule("cart", "kept", 1)).Revision
	for round := range 5 {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if _, err := b.Change(t.Context(), []policy.Edit{addRule("cart", fmt.Sprint("r", round, "-", i), i)}, false); err != nil {
					t.Error(err)
				}
			})
		}
		out, err := a.Rollback(t.Context(), good, false)
		must(t, err)
		wg.Wait()
		if out.Revision == 0 {
			continue // it was before all of them
		}
		// What is there now came after the rollback.
		svc := until(t, a, "all is known", func(st *State) bool { return st.Revision >= lastRevision(t, b) }).Services.Get(shop("cart"))
		for i, r := range svc.Rules {
			if r.ID != "kept" && svc.RuleRevisions[i] < out.Revision {
				t.Errorf("round %d: rule %s of revision %d is left by the rollback %d", round, r.ID, svc.RuleRevisions[i], out.Revision)
			}
		}
		_, err = a.Rollback(t.Context(), good, false)
		must(t, err)
	}
}
