package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

var configRef = policy.Ref{Kind: policy.KindConfig}

func addRule(service, id string, weight int) policy.Edit {
	r := policy.DefaultTrafficRule()
	r.Weight = weight
	return policy.Edit{Ref: trafficRef(shop(service), id), To: &policy.Resource{Traffic: &r}}
}

func addEndpoint(service, id string, port int) policy.Edit {
	e := endpoint(service, id)
	e.Port, e.Status = port, ""
	return policy.Edit{Ref: policy.Ref{Kind: policy.KindEndpoint, Namespace: "shop", Service: service, ID: id}, To: &policy.Resource{Endpoint: &e}}
}

func edit(t *testing.T, s *Store, edits ...policy.Edit) policy.Outcome {
	t.Helper()
	out, err := s.Change(t.Context(), edits, false)
	must(t, err)
	return out
}

func TestOfWritersOfOneVersionExactlyOneWins(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	for _, e := range []policy.Edit{addRule("cart", "r", 0), addEndpoint("cart", "e", 1)} {
		version := edit(t, a, e).Revision
		var won, lost atomic.Int32
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				mine := addRule("cart", "r", i+1)
				if e.Kind == policy.KindEndpoint {
					mine = addEndpoint("cart", "e", i+2)
				}
				mine.If.Versions = []int64{version}
				switch _, err := []*Store{a, b}[i%2].Change(t.Context(), []policy.Edit{mine}, false); {
				case err == nil:
					won.Add(1)
				case errors.Is(err, policy.ErrStale) && strings.Contains(err.Error(), "it was changed meanwhile"):
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		if wg.Wait(); won.Load() != 1 || lost.Load() != 9 {
			t.Errorf("%s: %d won and %d lost", e.Kind, won.Load(), lost.Load())
		}
	}
}

func TestNoIncrementIsLostByWritersWhoRepeat(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	edit(t, a, addRule("cart", "r", 0))
	var wg sync.WaitGroup
	const writers, each = 4, 8
	for i := range writers {
		s := []*Store{a, b}[i%2]
		wg.Go(func() {
			for done := 0; done < each; {
				svc := s.State().Services.Get(shop("cart"))
				if svc == nil {
					continue
				}
				next := addRule("cart", "r", svc.Rules[0].Weight+1)
				next.If.Versions = []int64{svc.RuleRevisions[0]}
				if _, err := s.Change(t.Context(), []policy.Edit{next}, false); err == nil {
					done++
				} else if !errors.Is(err, policy.ErrStale) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	until(t, a, "all are counted", func(st *State) bool { return st.Services.Get(shop("cart")).Rules[0].Weight == writers*each })
}

func TestConditions(t *testing.T) {
	s := open(t)
	version := edit(t, s, addRule("cart", "r", 1)).Revision
	remove := func(id string) policy.Edit { return policy.Edit{Ref: trafficRef(shop("cart"), id)} }
	set := policy.DefaultSettings()
	config := policy.Edit{Ref: configRef, To: &policy.Resource{Settings: &set}}
	for name, c := range map[string]struct {
		edit policy.Edit
		when policy.Condition
		want error
	}{
		"replace what exists":          {addRule("cart", "r", 2), policy.Condition{Exists: true}, nil},
		"replace what does not":        {addRule("cart", "x", 2), policy.Condition{Exists: true}, policy.ErrStale},
		"create what does not":         {addRule("cart", "x", 2), policy.Condition{Absent: true}, nil},
		"create what exists":           {addRule("cart", "r", 2), policy.Condition{Absent: true}, policy.ErrStale},
		"one of the versions":          {addRule("cart", "r", 2), policy.Condition{Versions: []int64{7, version}}, nil},
		"another version":              {addRule("cart", "r", 2), policy.Condition{Versions: []int64{version + 1}}, policy.ErrStale},
		"a version of nothing":         {addRule("cart", "x", 2), policy.Condition{Versions: []int64{version}}, policy.ErrStale},
		"remove another version":       {remove("r"), policy.Condition{Versions: []int64{version + 1}}, policy.ErrStale},
		"remove a version":             {remove("r"), policy.Condition{Versions: []int64{version}}, nil},
		"remove what does not exist":   {remove("x"), policy.Condition{}, ErrNotFound},
		"settings never set":           {config, policy.Condition{Versions: []int64{0}}, nil},
		"settings never set, absent":   {config, policy.Condition{Absent: true}, nil},
		"settings never set, exist":    {config, policy.Condition{Exists: true}, policy.ErrStale},
		"settings, version of nothing": {config, policy.Condition{Versions: []int64{9}}, policy.ErrStale},
	} {
		c.edit.If = c.when
		_, err := s.Change(t.Context(), []policy.Edit{c.edit}, true)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: the error is %v, want %v", name, err, c.want)
		}
	}
}

func TestADryRunTellsEverythingAndStoresNothing(t *testing.T) {
	s := open(t)
	edit(t, s, addRule("cart", "same", 1), addRule("cart", "other", 1), addRule("cart", "gone", 1))
	before, last := s.State(), lastRevision(t, s)
	out, err := s.Change(t.Context(), []policy.Edit{
		addRule("cart", "same", 1), addRule("cart", "other", 2), {Ref: trafficRef(shop("cart"), "gone")}, addRule("fresh", "", 3),
		{Ref: configRef, Patch: []byte(`{"egress":"deny"}`)},
	}, true)
	must(t, err)
	var got []string
	for _, d := range out.Differences {
		got = append(got, string(d.Action))
	}
	if want := "unchanged changed removed added changed"; strings.Join(got, " ") != want || out.Revision != 0 {
		t.Errorf("revision %d, actions %v, want %s", out.Revision, got, want)
	}
	if d := out.Differences[1]; d.Before.Traffic.Weight != 1 || d.After.Traffic.Weight != 2 {
		t.Errorf("the difference is %+v", d)
	}
	if d := out.Differences[3]; d.ID == "" || d.Before != nil || d.After.Traffic.ID != d.ID {
		t.Errorf("the rule that would be added is %+v", d)
	}
	if s.State() != before || lastRevision(t, s) != last {
		t.Error("something was stored")
	}
}

func TestEditsAreStoredTogetherOrNotAtAll(t *testing.T) {
	s := open(t)
	bad := addRule("cart", "r2", -1)
	_, err := s.Change(t.Context(), []policy.Edit{addRule("cart", "r1", 1), bad}, false)
	var p policy.Problems
	if !errors.As(err, &p) || p[0].Path != "edits[1].weight" {
		t.Errorf("a bad rule: %v", err)
	}
	_, err = s.Change(t.Context(), []policy.Edit{addRule("cart", "r1", 1), {Ref: trafficRef(shop("cart"), "none")}}, false)
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("a rule that is not there: %v", err)
	}
	if _, err := s.Change(t.Context(), []policy.Edit{addRule("cart", "r", 1), addRule("cart", "r", 2)}, false); !errors.As(err, &p) {
		t.Errorf("a rule twice: %v", err)
	}
	if n := s.State().Services.Len(); n != 0 {
		t.Fatalf("%d services are stored", n)
	}
	// Watchers see none or all; services that are new get their addresses.
	w := s.Watch()
	defer w.Close()
	_, err = w.Next(t.Context())
	must(t, err)
	edit(t, s, addRule("b", "z", 1), addRule("b", "a", 2), addEndpoint("a", "e", 1), addRule("b", "m", 3),
		policy.Edit{Ref: configRef, Patch: []byte(`{"egress":"deny"}`)}, policy.Edit{Ref: configRef, Patch: []byte(`{"mtls_mode":"permissive"}`)})
	c, err := w.Next(t.Context())
	must(t, err)
	a, b := c.State.Services.Get(shop("a")), c.State.Services.Get(shop("b"))
	if a == nil || b == nil || a.VirtualIndex != 1 || b.VirtualIndex != 2 {
		t.Fatalf("the services are %+v and %+v", a, b)
	}
	if got := ruleIDs(c.State, "b"); got != "z a m" {
		t.Errorf("rules added together stand as %s", got)
	}
	if set := c.State.Settings; set.Egress != "deny" || set.MTLSMode != policy.Permissive {
		t.Errorf("the settings are %+v", set)
	}
	edit(t, s, addRule("b", "first", 1))
	edit(t, s, addRule("b", "a", 9)) // replaced: it stays where it is
	if got := ruleIDs(s.State(), "b"); got != "z a m first" {
		t.Errorf("later they stand as %s", got)
	}
}

func ruleIDs(st *State, service string) string {
	var ids []string
	if svc := st.Services.Get(shop(service)); svc != nil {
		for _, r := range svc.Rules {
			ids = append(ids, r.ID)
		}
	}
	return strings.Join(ids, " ")
}

func TestAnEndpointKeepsWhatIsKnownOfIt(t *testing.T) {
	s := open(t)
	edit(t, s, addEndpoint("cart", "a", 1))
	must(t, s.SetStatus(t.Context(), "shop", "cart", "a", policy.Unhealthy))
	was := s.State().Services.Get(shop("cart")).Endpoints[0]
	quiet := addEndpoint("cart", "a", 1)
	quiet.Quiet = true
	if out := edit(t, s, quiet); out.Revision != 0 || out.Differences[0].Action != policy.Unchanged {
		t.Errorf("the same again is stored: %+v", out)
	}
	edit(t, s, addEndpoint("cart", "a", 2))
	if e := s.State().Services.Get(shop("cart")).Endpoints[0]; e.Status != policy.Unhealthy || e.Port != 2 || e.Revision <= was.Revision {
		t.Errorf("the endpoint is %+v, was %+v", e, was)
	}
}

func TestATransactionThatIsTooLargeIsRefusedWithAWayOut(t *testing.T) {
	s := open(t) // an etcd that was started without --max-txn-ops
	var edits []policy.Edit
	for i := range 200 {
		edits = append(edits, addRule("cart", fmt.Sprint("r", i), 1))
	}
	_, err := s.Change(t.Context(), edits, false)
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "--max-txn-ops=25000") {
		t.Errorf("the error is %v", err)
	}
	if n := s.State().Services.Len(); n != 0 {
		t.Error("something was stored")
	}
	edit(t, s, edits[:100]...)
}

func TestThousandsOfRulesAreOneTransactionOfTheEmbeddedStore(t *testing.T) {
	many := 10_000
	if raceEnabled {
		many = 2_000 // ten times as slow
	}
	s := run(t, Config{DataDir: dataDir(t)})
	empty := edit(t, s, addEndpoint("cart", "e", 1)).Revision
	var edits []policy.Edit
	for i := range many {
		edits = append(edits, addRule(fmt.Sprint("s", i%100), "", 1))
	}
	revision := edit(t, s, edits...).Revision
	count := func() (n int) {
		for _, svc := range s.State().Services.All() {
			n += len(svc.Rules)
		}
		return n
	}
	if n := count(); n != many {
		t.Errorf("%d rules are stored", n)
	}
	got, err := s.Revision(t.Context(), revision)
	must(t, err)
	if len(got.Changes) != many || got.Total != many {
		t.Errorf("the history has %d of %d changes", len(got.Changes), got.Total)
	}
	out, err := s.Rollback(t.Context(), empty, false)
	must(t, err)
	if n := count(); n != 0 || len(out.Differences) != many {
		t.Errorf("after a rollback of %d changes there are %d rules", len(out.Differences), n)
	}
}

func TestAChangeThatNobodyWaitsForIsStoredOrNot(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Change(ctx, []policy.Edit{addRule("cart", "r", 1)}, false); err == nil {
		t.Error("there is no error")
	}
	if out, err := s.Change(t.Context(), nil, false); err != nil || out.Revision != 0 {
		t.Errorf("no edits: %+v, %v", out, err)
	}
	if got := slices.Sorted(slices.Values([]string{strconv.FormatInt(s.State().SettingsRevision, 10)})); got[0] != "0" {
		t.Errorf("settings that were never set are at %v", got)
	}
}
