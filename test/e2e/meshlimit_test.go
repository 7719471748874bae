package e2e

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// callers are clients beside proxies of their own, each with a demand of its own.
type callers struct {
	nodes []*meshlab.Node
	rates []atomic.Int64 // requests a second

	mu     sync.Mutex // guards what follows
	events []event
	failed error
}

// event is one request and whether it was let through.
type event struct {
	at time.Time
	ok bool
}

const meshLimit, meshWindow = 200, 10 * time.Second

func (c *callers) drive(t *testing.T, url string) (stop func()) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	for i := range c.nodes {
		wg.Go(func() { c.call(client(t, c.nodes[i]), url, &c.rates[i], end) })
	}
	return func() { close(end); wg.Wait() }
}

func (c *callers) call(client *http.Client, url string, rate *atomic.Int64, end chan struct{}) {
	for {
		pause := 100 * time.Millisecond
		if r := rate.Load(); r > 0 {
			pause = time.Second / time.Duration(r)
		}
		select {
		case <-end:
			return
		case <-time.After(pause):
		}
		if rate.Load() == 0 {
			continue
		}
		at := time.Now()
		resp, err := client.Get(url)
		c.mu.Lock()
		switch {
		case err != nil:
			c.failed = err
		case resp.StatusCode != 200 && resp.StatusCode != 429:
			c.failed = fmt.Errorf("status %d", resp.StatusCode)
		default:
			c.events = append(c.events, event{at, resp.StatusCode == 200})
		}
		c.mu.Unlock()
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
}

// off tells how far what was let through is from what one place that counts
// would have let through of the same requests: the mean over windows, in parts of
// the limit. over is the most that any window held above the limit.
func (c *callers) off() (mean, over float64, asked, passed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.events, func(a, b event) int { return a.at.Compare(b.at) })
	var whole, real []time.Time
	slide := func(list []time.Time, now time.Time) []time.Time {
		for len(list) > 0 && now.Sub(list[0]) >= meshWindow {
			list = list[1:]
		}
		return list
	}
	windows := map[int][2]int{}
	for _, e := range c.events {
		w := int(e.at.Sub(c.events[0].at) / meshWindow)
		counts := windows[w]
		if whole = slide(whole, e.at); len(whole) < meshLimit {
			whole = append(whole, e.at)
			counts[0]++
		}
		if real = slide(real, e.at); e.ok {
			real = append(real, e.at)
			counts[1]++
			passed++
		}
		windows[w] = counts
		over = max(over, float64(len(real)-meshLimit)/meshLimit)
	}
	for _, n := range windows {
		mean += math.Abs(float64(n[0]-n[1])) / meshLimit / float64(len(windows))
	}
	return mean, over, len(c.events), passed
}

// Ten proxies that do not know each other keep one limit: under three times as
// many requests as it allows, which come from few of them, and every few seconds
// from others. The control plane's end changes nothing.
func TestOneLimitForTheWholeMesh(t *testing.T) {
	m := start(t)
	app := newBackend(t, bare(t, m, "orders"), "orders", 8002)
	enter(t, m, app.node, meshlab.Workload{Host: "orders", Service: "orders", Ports: []string{"8002"}})
	allow(t, m, "frontend", "orders")
	c := &callers{rates: make([]atomic.Int64, 10)}
	for i := range c.rates {
		c.nodes = append(c.nodes, join(t, m, meshlab.Workload{Host: fmt.Sprintf("front%d", i), Service: "frontend"}))
	}
	set(t, m, fmt.Sprintf(`{"services":{"orders":{"rate_limit":{"limit":%d,"window":%g,"scope":"mesh"}}}}`, meshLimit, meshWindow.Seconds()))
	for _, n := range c.nodes {
		await(t, m, "the limit at "+n.Host.Name(), func() error {
			if a := ask(t, n, "http://orders/"); a.Header.Get("RateLimit-Policy") != `"default";q=200;w=10` {
				return fmt.Errorf("%d %v", a.Status, a.Header)
			}
			return nil
		})
	}
	app.forget()
	stop := c.drive(t, "http://orders/")
	random := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		for i := range c.rates {
			c.rates[i].Store(0)
		}
		for range 4 { // of ten, four at most have requests: 60 a second
			c.rates[random.IntN(len(c.rates))].Add(15)
		}
		time.Sleep(5 * time.Second) // the demand itself is in time
	}
	stop()
	if c.failed != nil {
		t.Fatal(c.failed)
	}
	mean, over, asked, passed := c.off()
	t.Logf("of %d requests %d passed: off by %.1f %% of the limit, at most %.1f %% above it", asked, passed, 100*mean, 100*over)
	if mean > 0.1 || over > 0.2 {
		t.Errorf("off by %.3f of the limit, %.3f above it", mean, over)
	}
	if app.count() != passed {
		t.Errorf("the app saw %d of them", app.count())
	}
}
