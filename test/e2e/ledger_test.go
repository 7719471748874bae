package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// ledger proves what the control planes promise together, whatever happens to
// them: what was answered 200 is never lost, no half of a change is ever seen,
// and what is read without a warning is not older than what was answered
// before. One writer and one reader work at each control plane. A writer puts
// its next number into two settings by one call, which both of all writers race
// for, and into one of its own, and adds a security rule with that number.
type ledger struct {
	mesh *meshlab.Mesh
	next atomic.Int64
	wg   sync.WaitGroup
	end  context.CancelFunc

	mu       sync.Mutex // guards what follows
	acked    map[string]bool
	own      []int64 // by writer, the last number that was answered 200
	writes   int
	refused  int
	reads    int
	stale    int // reads that came with a warning
	slowest  time.Duration
	problems []string
	lastOK   time.Time // of a write
}

func newLedger(t *testing.T, m *meshlab.Mesh) *ledger {
	ctx, end := context.WithCancel(t.Context())
	l := &ledger{mesh: m, end: end, acked: map[string]bool{}, own: make([]int64, len(m.Planes))}
	for i, p := range m.Planes {
		c := &http.Client{Transport: &http.Transport{DialContext: p.Host.DialContext, DisableKeepAlives: true}, Timeout: 30 * time.Second}
		l.wg.Go(func() { l.writing(ctx, c, i, p) })
		l.wg.Go(func() { l.reading(ctx, c, i, p) })
	}
	t.Cleanup(func() { end(); l.wg.Wait() })
	return l
}

func (l *ledger) problem(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.problems) < 20 {
		l.problems = append(l.problems, fmt.Sprintf(format, args...))
	}
}

// call makes one call; status 0 is no answer.
func (l *ledger) call(ctx context.Context, c *http.Client, p *meshlab.Plane, method, path, body string) (status int, warning string, answer []byte) {
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:8080/api/v1"+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, "", nil
	}
	req.Header.Set("Authorization", "Bearer "+l.mesh.API.Token)
	began := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", nil
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", nil
	}
	l.mu.Lock()
	l.slowest = max(l.slowest, time.Since(began))
	l.mu.Unlock()
	return resp.StatusCode, resp.Header.Get("Warning"), answer
}

const pace = 40 * time.Millisecond

func (l *ledger) writing(ctx context.Context, c *http.Client, i int, p *meshlab.Plane) {
	for ctx.Err() == nil {
		n := l.next.Add(1)
		patch := fmt.Sprintf(`{"services":{"pair-a":{"timeout":%d},"pair-b":{"timeout":%d},"own-%d":{"timeout":%d}}}`, n, n, i, n)
		if l.write(ctx, c, p, "/config", patch) {
			l.mu.Lock()
			l.own[i] = n
			l.mu.Unlock()
		}
		rule := fmt.Sprintf("n%d", n)
		if l.write(ctx, c, p, "/security-rules", fmt.Sprintf(
			`{"source_namespace":"ledger","source_service":%q,"destination_namespace":"ledger","destination_service":"all"}`, rule)) {
			l.mu.Lock()
			l.acked[rule] = true
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

func (l *ledger) write(ctx context.Context, c *http.Client, p *meshlab.Plane, path, body string) bool {
	status, _, answer := l.call(context.WithoutCancel(ctx), c, p, http.MethodPost, path, body)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch status {
	case 200:
		l.writes++
		l.lastOK = time.Now()
	case 503, 0: // refused, or the control plane is gone
		l.refused++
	default:
		l.problems = append(l.problems, fmt.Sprintf("POST %s at %s: %d %s", path, p.Name, status, answer))
	}
	return status == 200
}

func (l *ledger) reading(ctx context.Context, c *http.Client, i int, p *meshlab.Plane) {
	for ctx.Err() == nil {
		l.mu.Lock()
		own := slices.Clone(l.own)
		l.mu.Unlock()
		status, warning, answer := l.call(ctx, c, p, http.MethodGet, "/config", "")
		if status != 0 {
			l.check(p, status, warning, answer, own)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

func (l *ledger) check(p *meshlab.Plane, status int, warning string, answer []byte, own []int64) {
	var got struct {
		Services map[string]struct {
			Timeout float64 `json:"timeout"`
		} `json:"services"`
	}
	if err := json.Unmarshal(answer, &got); status != 200 || err != nil {
		l.problem("GET /config at %s: %d %s", p.Name, status, answer)
		return
	}
	l.mu.Lock()
	if l.reads++; warning != "" {
		l.stale++
	}
	l.mu.Unlock()
	if a, b := got.Services["pair-a"].Timeout, got.Services["pair-b"].Timeout; a != b {
		l.problem("half of a change at %s: %v and %v", p.Name, a, b)
	}
	for i, n := range own {
		if have := got.Services[fmt.Sprintf("own-%d", i)].Timeout; warning == "" && have < float64(n) {
			l.problem("an old state at %s without a warning: %v, and %d was answered before", p.Name, have, n)
		}
	}
}

// writesAgain waits until a write is answered 200 that began after now.
func (l *ledger) writesAgain(t *testing.T) {
	t.Helper()
	since := time.Now()
	await(t, l.mesh, "a write to be taken", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.lastOK.After(since) {
			return fmt.Errorf("none of %d was, since %v", l.writes+l.refused, since)
		}
		return nil
	})
}

// close stops the work and compares what all control planes know with what was
// answered.
func (l *ledger) close(t *testing.T) {
	t.Helper()
	l.end()
	l.wg.Wait()
	for _, p := range l.mesh.Planes {
		rules, err := p.API.SecurityRules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]int{}
		for _, r := range rules {
			if r.SourceNamespace == "ledger" {
				have[r.SourceService]++
			}
		}
		for rule := range l.acked {
			if have[rule] != 1 {
				t.Errorf("rule %s was answered 200 and is there %d times at %s", rule, have[rule], p.Name)
			}
		}
		if extra := len(have) - len(l.acked); extra > l.refused {
			t.Errorf("%s has %d rules that were not answered 200, and only %d were refused or not answered", p.Name, extra, l.refused)
		}
	}
	for _, problem := range l.problems {
		t.Error(problem)
	}
	if l.writes < 10 || l.reads < 10 {
		t.Errorf("only %d writes and %d reads were made", l.writes, l.reads)
	}
	// Ten seconds for the store, a second for a read, and room for a busy machine.
	if l.slowest > 25*time.Second {
		t.Errorf("a call took %v", l.slowest)
	}
	t.Logf("%d writes taken, %d refused; %d reads, %d of them with a warning; the slowest call took %v", l.writes, l.refused, l.reads, l.stale, l.slowest)
}
