package e2e

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
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
	from   time.Time // what came before was looked at
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
// the limit. over is the most that any window held above the limit. What was
// looked at before is not counted again, but what a window holds of it is.
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
		var counts [2]int
		if whole = slide(whole, e.at); len(whole) < meshLimit {
			whole = append(whole, e.at)
			counts[0]++
		}
		if real = slide(real, e.at); e.ok {
			real = append(real, e.at)
			counts[1]++
		}
		if e.at.Before(c.from) {
			continue
		}
		asked, passed = asked+1, passed+counts[1]
		w := int(e.at.Sub(c.from) / meshWindow)
		windows[w] = [2]int{windows[w][0] + counts[0], windows[w][1] + counts[1]}
		over = max(over, float64(len(real)-meshLimit)/meshLimit)
	}
	delete(windows, len(windows)-1) // which is not whole, and says as much of the moment of its end
	for _, n := range windows {
		mean += math.Abs(float64(n[0]-n[1])) / meshLimit / float64(len(windows))
	}
	return mean, over, asked, passed
}

// deal gives every second or third caller a part of 60 requests a second, as long
// as said: of ten, four at most have any.
func (c *callers) deal(random *rand.Rand, times int, each time.Duration) {
	for range times {
		for i := range c.rates {
			c.rates[i].Store(0)
		}
		for range 4 {
			c.rates[random.IntN(len(c.rates))].Add(15)
		}
		time.Sleep(each) // the demand itself is in time
	}
	for i := range c.rates {
		c.rates[i].Store(0)
	}
}

// newCallers starts ten proxies, each of the control planes as it comes, and
// waits until they keep the limit.
func newCallers(t *testing.T, m *meshlab.Mesh) (*callers, *backend) {
	app := newBackend(t, bare(t, m, "orders"), "orders", 8002)
	enter(t, m, app.node, meshlab.Workload{Host: "orders", Service: "orders", Ports: []string{"8002"}})
	allow(t, m, "frontend", "orders")
	c := &callers{rates: make([]atomic.Int64, 10)}
	for i := range c.rates {
		var control []string // half of them begin with the other one, where there are two
		for j := range m.Planes {
			control = append(control, m.Planes[(i+j)%len(m.Planes)].GRPCAddr())
		}
		c.nodes = append(c.nodes, join(t, m, meshlab.Workload{Host: fmt.Sprintf("front%d", i), Service: "frontend", Control: strings.Join(control, ",")}))
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
	return c, app
}

// check compares what was let through with what one counting place would have let
// through since it did so last.
func (c *callers) check(t *testing.T, what string, mostOff, mostOver float64) (passed int) {
	t.Helper()
	if c.failed != nil {
		t.Fatal(c.failed)
	}
	mean, over, asked, passed := c.off()
	t.Logf("%s: of %d requests %d passed: off by %.1f %% of the limit, at most %.1f %% above it", what, asked, passed, 100*mean, 100*over)
	if mean > mostOff || over > mostOver {
		t.Errorf("%s: off by %.3f of the limit, %.3f above it", what, mean, over)
	}
	c.from = time.Now()
	return passed
}

// Ten proxies that do not know each other keep one limit: under three times as
// many requests as it allows, which come from few of them, and every few seconds
// from others.
func TestOneLimitForTheWholeMesh(t *testing.T) {
	t.Parallel()
	m := start(t)
	c, app := newCallers(t, m)
	random := rand.New(rand.NewPCG(1, 2))
	c.from = time.Now()
	stop := c.drive(t, "http://orders/")
	defer stop()
	c.deal(random, 8, 5*time.Second)
	passed := c.check(t, "divided", 0.1, 0.2)
	if app.count() != passed {
		t.Errorf("the app saw %d of %d", app.count(), passed)
	}
	// Without a control plane each keeps its share: never more than the limit.
	m.Control.Kill()
	<-m.Control.Done()
	c.deal(random, 3, 5*time.Second)
	if passed := c.check(t, "with the control plane away", 1, 0.2); passed == 0 {
		t.Error("nothing passes while the control plane is away")
	}
}

// Proxies of two control planes keep one limit too; and when one of these ends, the
// other divides all of it.
func TestOneLimitWithTwoControlPlanes(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 1, 2)
	c, _ := newCallers(t, m)
	random := rand.New(rand.NewPCG(3, 4))
	c.from = time.Now()
	stop := c.drive(t, "http://orders/")
	defer stop()
	c.deal(random, 5, 5*time.Second)
	c.check(t, "two control planes", 0.2, 0.2)
	m.Planes[1].Process.Kill()
	<-m.Planes[1].Process.Done()
	c.deal(random, 4, 5*time.Second) // proxies move, and what they had returns
	c.check(t, "after the end of one", 1, 0.4)
	c.deal(random, 5, 5*time.Second)
	c.check(t, "with the other alone", 0.2, 0.2)
}
