package flows

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func flow(path string, calls uint64) policy.FlowCount {
	return policy.FlowCount{Flow: policy.Flow{Direction: policy.FlowInbound, Method: "GET", Path: path, Allowed: true}, Calls: calls}
}

func TestFlowsAddUpOverMinutesAndSinceLeavesOlderOnesOut(t *testing.T) {
	l := New(noon)
	l.Add(noon, []policy.FlowCount{flow("/a", 1), flow("/b", 5)}, 0)
	l.Add(noon.Add(10*time.Second), []policy.FlowCount{flow("/a", 2)}, 3)
	l.Add(noon.Add(time.Hour), []policy.FlowCount{flow("/a", 4)}, 0)
	all, known, leftOut := l.Since(noon, func(f *policy.Flow) bool { return f.Path == "/a" })
	if len(all) != 1 || all[0].Calls != 7 || all[0].First != noon || all[0].Last != noon.Add(time.Hour) {
		t.Errorf("%+v", all)
	}
	if known != noon || leftOut != 3 {
		t.Error(known, leftOut)
	}
	late, _, _ := l.Since(noon.Add(30*time.Minute), nil)
	if len(late) != 1 || late[0].Calls != 4 {
		t.Errorf("%+v", late)
	}
	if _, known, _ := l.Since(noon.Add(-time.Hour), nil); known != noon {
		t.Errorf("known from %v: before the log began nothing is", known)
	}
}

func TestWhatIsADayOldIsForgotten(t *testing.T) {
	l := New(noon)
	l.Add(noon, []policy.FlowCount{flow("/a", 1)}, 0)
	l.Add(noon.Add(Kept+time.Minute), []policy.FlowCount{flow("/b", 1)}, 0)
	all, known, _ := l.Since(time.Time{}, nil)
	if len(all) != 1 || all[0].Path != "/b" || known != noon.Add(Kept+time.Minute) {
		t.Errorf("%+v, known from %v", all, known)
	}
}

func TestTooManyFlowsPushTheOldestMinutesOut(t *testing.T) {
	l := New(noon)
	const each = 50
	l.most = 200
	counts := make([]policy.FlowCount, each)
	for i := range counts {
		counts[i] = flow(fmt.Sprint("/", i), 1)
	}
	for m := range 6 {
		l.Add(noon.Add(time.Duration(m)*time.Minute), counts, 0)
	}
	if l.entries > l.most || len(l.minutes) != l.most/each {
		t.Errorf("%d entries in %d minutes", l.entries, len(l.minutes))
	}
	if _, known, _ := l.Since(noon, nil); known != noon.Add(2*time.Minute) {
		t.Errorf("known from %v", known)
	}
}

func TestAClockThatIsSetBackLosesNothing(t *testing.T) {
	l := New(noon)
	l.Add(noon, []policy.FlowCount{flow("/a", 1)}, 0)
	l.Add(noon.Add(-time.Hour), []policy.FlowCount{flow("/a", 1)}, 0)
	if all, _, _ := l.Since(noon, nil); len(all) != 1 || all[0].Calls != 2 {
		t.Errorf("%+v", all)
	}
}
