package publish

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// deltaRig drives the state machine without a stream.
type deltaRig struct {
	d      *delta
	source map[string]string // version by name; absent when not there
	nonces int
	out    []*discovery.DeltaDiscoveryResponse
}

func newDeltaRig() *deltaRig {
	return &deltaRig{d: newDelta(kindService), source: map[string]string{}}
}

func (r *deltaRig) set(name, version string) {
	if version == "" {
		delete(r.source, name)
	} else {
		r.source[name] = version
	}
	r.d.mark(name)
}

func (r *deltaRig) flush() {
	for names, _ := r.d.due(false, false); len(names) > 0; names, _ = r.d.due(false, false) {
		entries := make([]*entry, len(names))
		for i, name := range names {
			entries[i] = &entry{}
			if v := r.source[name]; v != "" {
				entries[i] = &entry{version: v, resource: &discovery.Resource{Name: name, Version: v}}
			}
		}
		r.out = append(r.out, r.d.respond(names, entries, 1, func() string { r.nonces++; return strconv.Itoa(r.nonces) })...)
	}
}

// story renders what was sent, one response a word.
func (r *deltaRig) story() string {
	var words []string
	for _, resp := range r.out {
		var parts []string
		for _, res := range resp.Resources {
			parts = append(parts, res.Name+"="+res.Version)
		}
		for _, name := range resp.RemovedResources {
			parts = append(parts, "-"+name)
		}
		words = append(words, resp.Nonce+":"+strings.Join(parts, ","))
	}
	r.out = nil
	return strings.Join(words, " ")
}

func TestDeltaStories(t *testing.T) {
	now := time.Unix(1, 0)
	for name, steps := range map[string][]struct {
		do   func(*deltaRig)
		want string
	}{
		"an answer to a new name does not wait for an ACK, a change does": {
			{func(r *deltaRig) { r.set("a", "1"); r.d.subscribe([]string{"a"}, nil) }, "1:a=1"},
			{func(r *deltaRig) { r.set("a", "2") }, ""},
			{func(r *deltaRig) { r.d.subscribe([]string{"b"}, nil) }, "2:-b"},
			{func(r *deltaRig) { r.d.settle("1", "", now) }, ""},
			{func(r *deltaRig) { r.d.settle("2", "", now) }, "3:a=2"},
		},
		"an ACK settles what was sent before it": {
			{func(r *deltaRig) { r.d.subscribe([]string{"a"}, nil) }, "1:-a"},
			{func(r *deltaRig) { r.d.subscribe([]string{"b"}, nil) }, "2:-b"},
			{func(r *deltaRig) { r.d.settle("2", "", now); r.set("a", "1") }, "3:a=1"},
		},
		"a change back while a response is out sends nothing": {
			{func(r *deltaRig) { r.set("a", "1"); r.d.subscribe([]string{"a"}, nil) }, "1:a=1"},
			{func(r *deltaRig) { r.set("a", "2"); r.set("a", "1"); r.d.settle("1", "", now) }, ""},
		},
		"a version brought along is compared, for the names subscribed only": {
			{func(r *deltaRig) {
				r.set("a", "1")
				r.set("b", "2")
				r.d.subscribe([]string{"a", "b", "c"}, map[string]string{"a": "1", "b": "1", "c": "1", "d": "1"})
			}, "1:b=2,-c"},
		},
		"a NACK is not resent, an explicit question is answered": {
			{func(r *deltaRig) { r.set("a", "1"); r.d.subscribe([]string{"a"}, nil) }, "1:a=1"},
			{func(r *deltaRig) { r.d.settle("1", "no", now); r.d.mark("a") }, ""},
			{func(r *deltaRig) { r.d.subscribe([]string{"a"}, nil) }, "2:a=1"},
		},
		"unsubscribed while its response is out": {
			{func(r *deltaRig) { r.set("a", "1"); r.d.subscribe([]string{"a"}, nil) }, "1:a=1"},
			{func(r *deltaRig) { r.d.unsubscribe([]string{"a", "x"}); r.set("a", "2"); r.d.settle("1", "no", now) }, ""},
			{func(r *deltaRig) { r.d.subscribe([]string{"a"}, nil) }, "2:a=2"},
		},
		"subscribed and unsubscribed at once": {
			{func(r *deltaRig) { r.d.subscribe([]string{"a"}, nil); r.d.unsubscribe([]string{"a"}) }, ""},
		},
		"unknown and repeated nonces": {
			{func(r *deltaRig) { r.set("a", "1"); r.d.subscribe([]string{"a"}, nil) }, "1:a=1"},
			{func(r *deltaRig) {
				if r.d.settle("0", "", now) || !r.d.settle("1", "", now) || r.d.settle("1", "no", now) {
					panic("a nonce counted wrongly")
				}
			}, ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDeltaRig()
			for i, step := range steps {
				step.do(r)
				r.flush()
				if got := r.story(); got != step.want {
					t.Fatalf("step %d sent %q, want %q", i+1, got, step.want)
				}
			}
		})
	}
}

func TestDeltaOutstandingResponsesAreBounded(t *testing.T) {
	r := newDeltaRig()
	for i := range 100 {
		r.d.subscribe([]string{fmt.Sprint("n", i)}, nil)
		r.flush()
	}
	if len(r.out) != maxFlights || len(r.d.flights) != maxFlights {
		t.Errorf("%d responses are out without an ACK, want %d", len(r.out), maxFlights)
	}
	r.d.settle("1", "", time.Time{})
	r.flush()
	if last := r.out[len(r.out)-1]; len(last.RemovedResources) != 100-maxFlights {
		t.Errorf("after an ACK %d answers came, want the rest together", len(last.RemovedResources))
	}
}

func TestDeltaNackReasonIsBoundedText(t *testing.T) {
	r := newDeltaRig()
	r.d.subscribe([]string{"a"}, nil)
	r.flush()
	r.d.settle("1", strings.Repeat("ü", maxReason), time.Unix(5, 0))
	st := r.d.status()
	if len(st.Nack) > maxReason || strings.ToValidUTF8(st.Nack, "?") != st.Nack || !st.NackAt.Equal(time.Unix(5, 0)) {
		t.Errorf("the reason kept has %d bytes", len(st.Nack))
	}
}

// FuzzDelta drives the state machine by arbitrary steps beside a proxy's view of
// it. In the end, when all is delivered, the proxy holds what the source holds,
// but for what it refused; and nothing is sent twice that was not asked for.
func FuzzDelta(f *testing.F) {
	f.Add([]byte{0, 8, 16, 24, 32, 40, 3, 11, 19})
	f.Add([]byte{0, 2, 3, 4, 0, 2, 3, 5, 1, 0, 4})
	f.Add([]byte("\x00\x08\x10\x02\x0a\x12\x03\x04\x03\x05\x01\x00\x02\x03\x04"))
	f.Fuzz(func(t *testing.T, steps []byte) {
		r := newDeltaRig()
		p := &fuzzProxy{t: t, rig: r, view: map[string]string{}, refused: map[string]string{}, may: map[string]bool{}}
		for i, b := range steps {
			name := string('a' + rune(b>>3&3))
			switch b & 7 {
			case 0:
				p.subscribe(name)
			case 1:
				p.unsubscribe(name)
			case 2:
				r.set(name, strconv.Itoa(i+1))
			case 3:
				r.flush()
			case 4:
				p.deliver(false)
			case 5:
				p.deliver(true)
			case 6:
				r.set(name, "")
			case 7:
				r.d.settle(strconv.Itoa(int(b>>3)+1000), "", time.Time{}) // made up
			}
			if n := len(r.d.flights); n > maxFlights {
				t.Fatalf("%d responses are out", n)
			}
		}
		for r.flush(); len(r.out) > 0; r.flush() {
			p.deliver(false)
		}
		p.compare()
	})
}

// fuzzProxy is a proxy's side: what it holds and what it refused last.
type fuzzProxy struct {
	t       *testing.T
	rig     *deltaRig
	view    map[string]string // by name subscribed: the version held, "" for absent, "?" for not told
	refused map[string]string
	may     map[string]bool // asked since the last answer
}

func (p *fuzzProxy) subscribe(name string) {
	if _, ok := p.view[name]; !ok {
		p.view[name] = "?"
	}
	p.may[name] = true
	p.rig.d.subscribe([]string{name}, nil)
}

func (p *fuzzProxy) unsubscribe(name string) {
	delete(p.view, name)
	delete(p.refused, name)
	p.rig.d.unsubscribe([]string{name})
}

// deliver takes the oldest response and answers it.
func (p *fuzzProxy) deliver(refuse bool) {
	if len(p.rig.out) == 0 {
		return
	}
	resp := p.rig.out[0]
	p.rig.out = p.rig.out[1:]
	versions := map[string]string{}
	for _, res := range resp.Resources {
		versions[res.Name] = res.Version
	}
	for _, name := range resp.RemovedResources {
		versions[name] = ""
	}
	if len(versions) == 0 {
		p.t.Fatal("an empty response was sent")
	}
	for name, v := range versions {
		held, follows := p.view[name]
		if !follows {
			continue // dropped meanwhile
		}
		if old, was := p.refused[name]; !p.may[name] && (held == v && !was || was && old == v) {
			p.t.Fatalf("%s=%q was sent again", name, v)
		}
		if refuse {
			p.refused[name] = v
			continue
		}
		p.view[name] = v
		delete(p.refused, name)
	}
	reason := ""
	if refuse {
		reason = "refused"
	}
	if !p.rig.d.settle(resp.Nonce, reason, time.Time{}) {
		p.t.Fatalf("nonce %s is not known to the server", resp.Nonce)
	}
}

func (p *fuzzProxy) compare() {
	for name, held := range p.view {
		want := p.rig.source[name]
		if v, was := p.refused[name]; was && v == want {
			continue
		}
		if held != want {
			p.t.Errorf("the proxy holds %s=%q, the source %q", name, held, want)
		}
	}
	st := p.rig.d.status()
	var names []string
	for name := range p.refused {
		names = append(names, name)
	}
	slices.Sort(names)
	if st.Pending != 0 || !slices.Equal(st.Refused, names) {
		p.t.Errorf("the status is %+v; refused %v", st, names)
	}
}
