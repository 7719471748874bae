// Package flows counts calls by what they have in common, in bounded tables.
// It does not look at requests, nor send what it counted.
package flows

import (
	"strings"
	"sync"
	"unsafe"

	"github.com/weir-mesh/weir/policy"
)

const (
	// maxFlows bounds a Table: what is more is counted with the path FoldedOther,
	// and what finds no room even so is left out, and told.
	maxFlows = 1024
	// maxOthers is the room kept for those.
	maxOthers = 128
	// maxMethod bounds a method's length, of which clients make up any.
	maxMethod = 20
)

// Table counts flows. It is one loop's alone; a flow that it knows costs no
// allocation. The zero Table is ready.
type Table struct {
	counts  map[policy.Flow]*tally
	recent  [recentFlows]*tally // by recentAt, of those in counts
	paths   map[string]string   // folded, each once
	folded  []byte
	leftOut uint64
	some    bool // something was counted since Drain
}

// tally is what was counted of a flow.
type tally struct {
	flow          policy.Flow // in a Table
	calls, errors uint64
}

// recentFlows are found without hashing a dozen strings, which would be a sixth of
// what the proxy itself does for a request. A power of two.
const recentFlows = 64

// recentAt files a flow by where those of its strings are that differ most. They
// stay the same from call to call: names are of a certificate, a path is of paths.
func recentAt(f *policy.Flow) uintptr {
	at := uintptr(unsafe.Pointer(unsafe.StringData(f.Path)))>>4 ^ uintptr(unsafe.Pointer(unsafe.StringData(f.Source.Name)))>>3 ^
		uintptr(unsafe.Pointer(unsafe.StringData(f.Routed.Name)))>>5 ^ uintptr(len(f.Method))<<2 ^ uintptr(f.Port)
	return (at ^ at>>6) % recentFlows
}

// Record counts a call and says whether it is the first since Drain. The flow's
// Path is not looked at: it is made of the target. Strings need to hold only for
// the length of the call; f is written to.
func (t *Table) Record(f *policy.Flow, target string, failed bool) (first bool) {
	if t.counts == nil {
		t.counts, t.paths = map[policy.Flow]*tally{}, map[string]string{}
	}
	t.folded = AppendFolded(t.folded[:0], target)
	path, known := t.paths[string(t.folded)]
	switch full := len(t.counts) >= maxFlows-maxOthers; {
	case known:
	case full && len(t.folded) > 0: // a string of its own would be an allocation for each call
		path = policy.FoldedOther
	default:
		path = string(t.folded)
	}
	if len(f.Method) > maxMethod {
		f.Method = f.Method[:maxMethod]
	}
	f.Path = path
	slot := &t.recent[recentAt(f)]
	c := *slot
	if c == nil || c.flow != *f {
		if c = t.counts[*f]; c == nil {
			c = t.enter(f)
		}
		*slot = c
	}
	if c == nil {
		t.leftOut++
	} else {
		c.calls++
		if failed {
			c.errors++
		}
	}
	first, t.some = !t.some, true
	return first
}

// enter makes room for a flow that is not known; nil where there is none.
func (t *Table) enter(f *policy.Flow) *tally {
	if len(t.counts) >= maxFlows-maxOthers && f.Path != "" {
		f.Path = policy.FoldedOther
		if c := t.counts[*f]; c != nil {
			return c
		}
	}
	if len(t.counts) >= maxFlows {
		return nil
	}
	f.Method = strings.Clone(f.Method)
	if kept, ok := t.paths[f.Path]; ok {
		f.Path = kept
	} else {
		t.paths[f.Path] = f.Path
	}
	c := &tally{flow: *f}
	t.counts[*f] = c
	return c
}

// Drain gives what was counted since the last time, and forgets the flows of
// which there were none.
func (t *Table) Drain() (out []policy.FlowCount, leftOut uint64) {
	idle := false
	for f, c := range t.counts {
		if c.calls == 0 {
			idle = true
			delete(t.counts, f)
			continue
		}
		out = append(out, policy.FlowCount{Flow: f, Calls: c.calls, Errors: c.errors})
		c.calls, c.errors = 0, 0
	}
	if idle {
		t.recent = [recentFlows]*tally{}
		clear(t.paths)
		for f := range t.counts {
			t.paths[f.Path] = f.Path
		}
	}
	leftOut, t.leftOut, t.some = t.leftOut, 0, false
	return out, leftOut
}

// maxPending bounds what waits to be sent while the control plane is away.
const maxPending = 4096

type count struct{ calls, errors uint64 }

// Pending collects what tables counted until somebody takes it. It is safe for
// concurrent use; the zero Pending is ready.
type Pending struct {
	mu      sync.Mutex // guards what follows
	counts  map[policy.Flow]count
	leftOut uint64
}

// Add takes in what a Table gave.
func (p *Pending) Add(counts []policy.FlowCount, leftOut uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts == nil {
		p.counts = map[policy.Flow]count{}
	}
	p.leftOut += leftOut
	for _, c := range counts {
		have, known := p.counts[c.Flow]
		if !known && len(p.counts) >= maxPending {
			p.leftOut += c.Calls
			continue
		}
		p.counts[c.Flow] = count{have.calls + c.Calls, have.errors + c.Errors}
	}
}

// Take gives at most so many flows and forgets them, and how many calls were
// left out since the last time.
func (p *Pending) Take(most int) (out []policy.FlowCount, leftOut uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f, c := range p.counts {
		if len(out) == most {
			break
		}
		out = append(out, policy.FlowCount{Flow: f, Calls: c.calls, Errors: c.errors})
		delete(p.counts, f)
	}
	leftOut, p.leftOut = p.leftOut, 0
	return out, leftOut
}
