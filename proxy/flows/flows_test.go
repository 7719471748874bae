package flows

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestPathsAreFolded(t *testing.T) {
	for target, want := range map[string]string{
		"/":                    "/",
		"/orders/17":           "/orders/*",
		"/orders/17/items?x=1": "/orders/*/items",
		"/u/6f1ed002-ab5f-4f8a-9d2c-0a6b5d3f7e11/x": "/u/*/x",
		"/c/deadbeef42":                          "/c/*",
		"/api/v1/added":                          "/api/v1/added",
		"/feedface":                              "/feedface",
		"/ab12":                                  "/ab12", // short, and no number
		"/mail/ann@example.com":                  "/mail/*",
		"/mail/%61":                              "/mail/*",
		"/" + strings.Repeat("x", maxSegment+1):  "/*",
		"/1/2/a/b/c/d/e/f/g/h":                   "/*/*/a/b/c/d/e/f/…",
		"*":                                      "*",
		"//a/":                                   "//a/",
		"":                                       "",
		"example.com:" + strings.Repeat("4", 80): "example.com:" + strings.Repeat("4", maxSegment-12),
	} {
		if got := string(AppendFolded(nil, target)); got != want {
			t.Errorf("%q is %q, not %q", target, got, want)
		}
	}
}

func inbound(method string) *policy.Flow {
	return &policy.Flow{Direction: policy.FlowInbound, Method: method, Allowed: true}
}

func TestTheSameFlowIsCountedOnce(t *testing.T) {
	var table Table
	if !table.Record(inbound("GET"), "/orders/1", false) || table.Record(inbound("GET"), "/orders/2?a", true) {
		t.Error("only the first since Drain is the first")
	}
	got, leftOut := table.Drain()
	if len(got) != 1 || got[0].Path != "/orders/*" || got[0].Calls != 2 || got[0].Errors != 1 || leftOut != 0 {
		t.Errorf("%+v, %d", got, leftOut)
	}
	if got, _ := table.Drain(); len(got) != 0 {
		t.Errorf("told twice: %+v", got)
	}
	if len(table.counts)+len(table.paths) != 0 {
		t.Errorf("kept although idle: %v %v", table.counts, table.paths)
	}
	if !table.Record(inbound("GET"), "/orders/1", false) {
		t.Error("after Drain there is a first again")
	}
}

// More flows than are found without hashing, each in turn.
func TestManyFlowsAreToldApart(t *testing.T) {
	var table Table
	for range 3 {
		for port := range uint16(5 * recentFlows) {
			f := inbound("GET")
			f.Port = port
			table.Record(f, "/orders", port%2 == 1)
		}
	}
	got, _ := table.Drain()
	for _, c := range got {
		if c.Calls != 3 || c.Errors != 3*uint64(c.Port%2) {
			t.Errorf("port %d: %d calls, %d errors", c.Port, c.Calls, c.Errors)
		}
	}
	if len(got) != 5*recentFlows {
		t.Errorf("%d flows", len(got))
	}
}

func TestATableIsBoundedAndTellsWhatItLeftOut(t *testing.T) {
	var table Table
	const calls = 3 * maxFlows
	for i := range calls {
		table.Record(inbound("GET"), fmt.Sprintf("/page-%dx", i), false)
	}
	for i := range calls {
		table.Record(inbound(fmt.Sprint("M", i)), "/", false)
	}
	if len(table.counts) > maxFlows || len(table.paths) > maxFlows {
		t.Errorf("%d flows, %d paths", len(table.counts), len(table.paths))
	}
	got, leftOut := table.Drain()
	sum, others := leftOut, uint64(0)
	for _, c := range got {
		sum += c.Calls
		if c.Path == policy.FoldedOther {
			others += c.Calls
		}
	}
	if sum != 2*calls || others == 0 || leftOut == 0 {
		t.Errorf("%d calls counted or left out of %d; %d others, %d left out", sum, 2*calls, others, leftOut)
	}
}

func TestTextsOfARequestAreNotKept(t *testing.T) {
	var table Table
	method := []byte("PATCH")
	table.Record(inbound(unsafeString(method)), "/", false)
	copy(method, "XXXXX")
	if got, _ := table.Drain(); got[0].Method != "PATCH" {
		t.Errorf("%q is the request's memory", got[0].Method)
	}
}

func TestAKnownFlowAllocatesNothing(t *testing.T) {
	var table Table
	f := inbound("GET")
	record := func() {
		*f = policy.Flow{Direction: policy.FlowInbound, Method: "GET"}
		table.Record(f, "/orders/17?a=b", false)
	}
	record()
	if n := testing.AllocsPerRun(1000, record); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPendingAddsUpUntilTakenAndIsBounded(t *testing.T) {
	var p Pending
	p.Add([]policy.FlowCount{{Flow: *inbound("GET"), Calls: 2}}, 1)
	p.Add([]policy.FlowCount{{Flow: *inbound("GET"), Calls: 3, Errors: 1}, {Flow: *inbound("PUT"), Calls: 1}}, 0)
	one, leftOut := p.Take(1)
	two, _ := p.Take(10)
	if len(one) != 1 || len(two) != 1 || one[0].Calls+two[0].Calls != 6 || leftOut != 1 {
		t.Errorf("%+v %+v %d", one, two, leftOut)
	}
	for i := range maxPending + 7 {
		p.Add([]policy.FlowCount{{Flow: *inbound(fmt.Sprint(i)), Calls: 1}}, 0)
	}
	if all, leftOut := p.Take(maxPending + 7); len(all) != maxPending || leftOut != 7 {
		t.Errorf("%d pending, %d left out", len(all), leftOut)
	}
}

// FuzzAppendFolded asserts what makes a folded path safe to keep: it is bounded,
// has no query, and folding it again changes nothing.
func FuzzAppendFolded(f *testing.F) {
	for _, target := range []string{"/", "/orders/17?x=1", "*", "/a//b/", "/%2e%2e/\xff", "example.com:443", "/a#b"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		got := string(AppendFolded(nil, target))
		if len(got) > (maxSegments+1)*(maxSegment+1) || strings.ContainsAny(got, "?#") {
			t.Fatalf("%q is %q", target, got)
		}
		if again := string(AppendFolded(nil, got)); again != got && !strings.HasSuffix(got, "/…") {
			t.Fatalf("%q is %q, and again %q", target, got, again)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	var t Table
	f := *inbound("GET")
	b.ReportAllocs()
	for b.Loop() {
		g := f
		t.Record(&g, "/orders/17/items", false)
	}
}
