package outlier

import (
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func defaults() Config {
	return Config{
		MinHosts: 3, MinRequests: 100, RateFactor: 1.9, RateMargin: 0.1, LatencyFactor: 3, LatencyMargin: 10 * time.Millisecond,
		BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxEjectedPart: 50,
	}
}

func hosts(n int) []*Host {
	out := make([]*Host, n)
	for i := range out {
		out[i] = &Host{}
	}
	return out
}

// send records n requests, of which a share fails, spread evenly.
func send(h *Host, n int, failing float64, latency time.Duration) {
	failed := 0
	for i := range n {
		if float64(failed) < failing*float64(i+1)-1e-9 {
			failed++
			h.Record(latency, true)
		} else {
			h.Record(latency, false)
		}
	}
}

func ejected(hs []*Host) (out []int) {
	for i, h := range hs {
		if h.Ejected() {
			out = append(out, i)
		}
	}
	return out
}

const ms = time.Millisecond

func TestWhoIsAnOutlier(t *testing.T) {
	for _, c := range []struct {
		name    string
		failing []float64
		latency []time.Duration
		want    []int
	}{
		{"nobody, where all are well", []float64{0, 0, 0, 0}, nil, nil},
		{"one that fails a fifth, which no circuit ever sees", []float64{0, 0.2, 0, 0}, nil, []int{1}},
		{"nobody, where all fail alike", []float64{0.5, 0.5, 0.5, 0.5}, nil, nil},
		{"not one that fails a little more", []float64{0, 0.05, 0, 0}, nil, nil},
		{"one of three", []float64{0, 0, 0.5}, nil, []int{2}},
		{"nobody of two: which of them?", []float64{0, 1}, nil, nil},
		{"two at once: they do not hide each other", []float64{0, 1, 0.9, 0, 0}, nil, []int{1, 2}},
		{"not one that is within what the others differ", []float64{0.1, 0.3, 0.5, 0.2, 0.45}, nil, nil},
		{"one that is slow", nil, []time.Duration{20 * ms, 20 * ms, 100 * ms, 25 * ms}, []int{2}},
		{"not one that is twice as slow", nil, []time.Duration{20 * ms, 20 * ms, 40 * ms}, nil},
		{"not one that is slow by less than the margin", nil, []time.Duration{ms, ms, 10 * ms}, nil},
		{"the failing before the slow", []float64{0, 0, 0, 0.5}, []time.Duration{ms, ms, time.Second, ms}, []int{2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			hs := hosts(max(len(c.failing), len(c.latency)))
			for i := range hs {
				failing, latency := 0.0, ms
				if c.failing != nil {
					failing = c.failing[i]
				}
				if c.latency != nil {
					latency = c.latency[i]
				}
				send(hs[i], 200, failing, latency)
			}
			found := Judge(defaults(), noon, hs)
			if got := ejected(hs); len(got) != len(c.want) || len(found) != len(c.want) {
				t.Fatalf("ejected %v, want %v; %+v", got, c.want, found)
			}
			for i, w := range c.want {
				if ejected(hs)[i] != w {
					t.Errorf("ejected %v, want %v", ejected(hs), c.want)
				}
			}
			if c.name == "the failing before the slow" && (found[0].Reason != SuccessRate || found[1].Reason != Latency) {
				t.Errorf("in the order %+v", found)
			}
		})
	}
}

func TestFewRequestsProveNothing(t *testing.T) {
	hs := hosts(4)
	for i, h := range hs {
		n := 200
		if i == 3 {
			n = 99
		}
		send(h, n, map[bool]float64{true: 1}[i == 3], ms)
	}
	if got := Judge(defaults(), noon, hs); len(got) != 0 {
		t.Errorf("judged by 99 requests: %+v", got)
	}
	// The window is the time between two calls: what was too few then does not add up.
	for _, h := range hs[:3] {
		send(h, 200, 0, ms)
	}
	send(hs[3], 99, 1, ms)
	if got := Judge(defaults(), noon, hs); len(got) != 0 {
		t.Errorf("two windows of 99 requests were added up: %+v", got)
	}
}

// A thousand windows in which all endpoints fail alike, by chance more or less: none is ejected, whatever the share.
func TestChanceMakesNoOutliers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, share := range []float64{0.01, 0.1, 0.3, 0.5} {
		cfg, wrong := defaults(), 0
		cfg.MinRequests = 50
		for range 1000 {
			hs := hosts(10)
			for _, h := range hs {
				for range 50 {
					h.Record(time.Duration(rnd.ExpFloat64()*float64(50*ms)), rnd.Float64() < share)
				}
			}
			wrong += len(Judge(cfg, noon, hs))
		}
		if wrong > 20 { // of 10 000
			t.Errorf("where all fail %v of their requests, %d of 10000 verdicts are wrong", share, wrong)
		}
	}
}

func TestNeverAllAndNeverMoreThanAllowed(t *testing.T) {
	for _, c := range []struct{ hosts, bad, percent, want int }{
		{10, 4, 10, 1}, {10, 4, 25, 2}, {10, 4, 100, 4}, {3, 1, 1, 1}, {100, 30, 10, 10}, {9, 4, 50, 4},
	} {
		cfg := defaults()
		cfg.MaxEjectedPart = c.percent
		hs := hosts(c.hosts)
		for range 5 { // again and again does not eject more
			for i, h := range hs {
				send(h, 200, map[bool]float64{true: 1}[i < c.bad], ms)
			}
			Judge(cfg, noon, hs)
		}
		if got := len(ejected(hs)); got != c.want {
			t.Errorf("%+v: %d are out", c, got)
		}
	}
	// Even where all but one were ejected already the last one stays.
	cfg := defaults()
	cfg.MaxEjectedPart = 100
	hs := hosts(4)
	for i, h := range hs[:3] {
		h.eject(&cfg, noon, &Verdict{Index: i})
	}
	send(hs[3], 1000, 1, ms)
	if Judge(cfg, noon, hs); hs[3].Ejected() {
		t.Error("all are out")
	}
}

// The n-th ejection lasts n times as long, up to the limit; windows without one are forgiving.
func TestWhoRelapsesIsOutForLonger(t *testing.T) {
	cfg, hs, now := defaults(), hosts(4), noon
	window := func(bad bool) []Verdict {
		for i, h := range hs {
			send(h, 200, map[bool]float64{true: 1}[bad && i == 0], ms)
		}
		now = now.Add(10 * time.Second)
		return Judge(cfg, now, hs)
	}
	for _, want := range []int{30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300} {
		v := window(true)
		if len(v) != 1 || v[0].For != time.Duration(want)*time.Second || !v[0].Ejected {
			t.Fatalf("want %d s: %+v", want, v)
		}
		if back := Release(now.Add(v[0].For-1), hs); back != nil || !hs[0].Ejected() {
			t.Fatalf("back too early: %+v", back)
		}
		now = now.Add(v[0].For)
		if back := Release(now, hs); len(back) != 1 || back[0].Ejected || hs[0].Ejected() {
			t.Fatalf("not back: %+v", back)
		}
	}
	for range 9 {
		window(false)
	}
	if v := window(true); v[0].For != 90*time.Second { // 11 ejections, 9 forgiven
		t.Errorf("after nine windows without it is out for %v", v[0].For)
	}
}

func TestWhatIsSentToAnEjectedOneIsNotHeldAgainstIt(t *testing.T) {
	cfg, hs := defaults(), hosts(4)
	for i, h := range hs {
		send(h, 200, map[bool]float64{true: 1}[i == 0], ms)
	}
	Judge(cfg, noon, hs)
	send(hs[0], 500, 1, ms) // all others were away for a moment
	Release(noon.Add(time.Hour), hs)
	for _, h := range hs {
		send(h, 200, 0, ms)
	}
	if v := Judge(cfg, noon.Add(time.Hour), hs); len(v) != 0 {
		t.Errorf("ejected for what was before: %+v", v)
	}
}

func TestVerdictsTellWhatTheyGoBy(t *testing.T) {
	hs := hosts(3)
	send(hs[0], 1000, 0.4, 20*ms)
	send(hs[1], 1000, 0.1, 20*ms)
	send(hs[2], 1000, 0.1, 20*ms)
	v := Judge(defaults(), noon, hs)
	if len(v) != 1 || v[0].Index != 0 || math.Abs(v[0].Rate-0.6) > 0.01 || math.Abs(v[0].MedianRate-0.9) > 0.01 || v[0].Reason != SuccessRate {
		t.Fatalf("%+v", v)
	}
	if d := v[0].MedianLatency; d < 18*ms || d > 22*ms {
		t.Errorf("median latency %v", d)
	}
}

func TestLogarithmsThereAndBack(t *testing.T) {
	before := int64(-1)
	for d := time.Duration(1); d < 100*time.Hour; d += 1 + d/97 {
		log := logarithm(d)
		if log < before {
			t.Fatalf("%v: falls", d)
		}
		before = log
		if got := antilogarithm(float64(log)); math.Abs(got-float64(d)) > 0.002*float64(d)+1 {
			t.Fatalf("%v became %v", d, time.Duration(got))
		}
	}
	if logarithm(0) != 0 || logarithm(-5) != 0 {
		t.Error("no time at all")
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	if err := defaults().Check(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"at least 3":     func(c *Config) { c.MinHosts = 2 },
		"none to judge":  func(c *Config) { c.MinRequests = 0 },
		"margin of 0":    func(c *Config) { c.RateMargin = 0 },
		"latency factor": func(c *Config) { c.LatencyFactor = 1 },
		"ejections of":   func(c *Config) { c.MaxEjection = 1 },
		"101 per cent":   func(c *Config) { c.MaxEjectedPart = 101 },
	} {
		c := defaults()
		change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestRecordingIsForManyAndAllocatesNothing(t *testing.T) {
	hs := hosts(3)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				hs[0].Record(ms, true)
				hs[0].Ejected()
			}
		})
	}
	for range 50 {
		Judge(defaults(), noon, hs)
		Release(noon, hs)
	}
	wg.Wait()
	if n := testing.AllocsPerRun(100, func() { hs[1].Record(ms, false) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Host
	for b.Loop() {
		h.Record(ms, false)
	}
}

func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(map[int]string{10: "10", 10_000: "10000"}[n], func(b *testing.B) {
			hs := hosts(n)
			for b.Loop() {
				for _, h := range hs {
					h.counts.Store(200 << 32)
				}
				Judge(defaults(), noon, hs)
			}
		})
	}
}
