package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

var record = Record{
	Time: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("CET", 3600)), Direction: Outbound, RequestID: "4bf9",
	Source: "spiffe://mesh/ns/shop/sa/web", Destination: "cart.shop", Endpoint: "10.0.0.1:80", Method: "GET", Path: "/cart?x=\"1\"\n", Protocol: "http1",
	Status: 503, Reason: "circuit_open", Duration: 1234567 * time.Nanosecond, BytesIn: 1, BytesOut: 2, Attempts: 3, Route: "r1", TraceID: "abc",
}

// sink collects what is written. Hold it to stall the writer.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// run starts the log's loop and returns what ends it and gives its error.
func run(l *AccessLog) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return func() error { cancel(); return <-done }
}

func TestALine(t *testing.T) {
	var out sink
	l := NewAccessLog(&out, 0)
	l.Log(&record)
	l.Log(&Record{Time: record.Time, Direction: Inbound, Protocol: "tcp", Reason: "idle"})
	if err := run(l)(); err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-03-01T11:00:00.123456789Z","direction":"outbound","request_id":"4bf9","source":"spiffe://mesh/ns/shop/sa/web",` +
		`"destination":"cart.shop","endpoint":"10.0.0.1:80","method":"GET","path":"/cart?x=\"1\"\n","protocol":"http1","status":503,"reason":"circuit_open",` +
		`"duration_ms":1.234,"bytes_in":1,"bytes_out":2,"attempts":3,"route":"r1","trace_id":"abc"}` + "\n" +
		`{"time":"2026-03-01T11:00:00.123456789Z","direction":"inbound","protocol":"tcp","reason":"idle","duration_ms":0,"bytes_in":0,"bytes_out":0}` + "\n"
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestALineIsWrittenSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		l := NewAccessLog(&out, 0)
		stop := run(l)
		l.Log(&record)
		time.Sleep(flushEvery + 1) // the bubble's time
		synctest.Wait()
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Half of the room is used: Run does not wait for its tick.
func TestABurstIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		l := NewAccessLog(&out, 4096)
		stop := run(l)
		for range 100 { // 35 KB
			l.Log(&record)
			synctest.Wait()
		}
		if l.Dropped() != 0 || strings.Count(out.String(), "\n") < 90 {
			t.Errorf("%d dropped, %d lines", l.Dropped(), strings.Count(out.String(), "\n"))
		}
		stop()
	})
}

// The writer hangs (a full pipe): requests go on, memory stays bounded, what is lost is counted, and what waited is written after.
func TestAStalledWriterDoesNotStallRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &gate{open: make(chan struct{})}
		r := New(Options{NoRuntime: true})
		l := NewAccessLog(out, 4096)
		r.WatchAccessLog(l)
		stop := run(l)
		l.Log(&record)
		time.Sleep(flushEvery + 1)
		synctest.Wait() // Run hangs in Write
		for range 1000 {
			l.Log(&record)
		}
		dropped := l.Dropped()
		if dropped < 980 || len(l.waiting) > 4096 {
			t.Errorf("%d dropped, %d bytes wait", dropped, len(l.waiting))
		}
		close(out.open)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if lines := strings.Count(out.String(), "\n"); lines+int(dropped) != 1001 || l.Dropped() != dropped {
			t.Errorf("%d lines and %d dropped of 1001", lines, l.Dropped())
		}
		if err := testutil.GatherAndCompare(r.prom, strings.NewReader(fmt.Sprintf(`# HELP weir_access_log_dropped_total Access log records lost because the writer did not keep up or failed.
# TYPE weir_access_log_dropped_total counter
weir_access_log_dropped_total %d
`, dropped)), "weir_access_log_dropped_total"); err != nil {
			t.Error(err)
		}
	})
}

// gate is a writer that hangs until it is opened.
type gate struct {
	sink
	open chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.sink.Write(p)
}

// The disk is full, then not: what could not be written is counted, and the log goes on.
func TestAFailingWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("no space left on device")
		out := &sink{err: full}
		l := NewAccessLog(out, 0)
		stop := run(l)
		l.Log(&record)
		l.Log(&record)
		time.Sleep(flushEvery + 1)
		synctest.Wait()
		if l.Dropped() != 2 {
			t.Errorf("%d dropped", l.Dropped())
		}
		out.mu.Lock()
		out.err = nil
		out.mu.Unlock()
		l.Log(&record)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if strings.Count(out.String(), "\n") != 1 {
			t.Error(out.String())
		}
	})
	out := &sink{err: errors.New("broken pipe")}
	l := NewAccessLog(out, 0)
	l.Log(&record)
	if err := run(l)(); err == nil || err.Error() != "write access log: broken pipe" {
		t.Error(err)
	}
}

func TestANilLogCostsNothing(t *testing.T) {
	var l *AccessLog
	if n := testing.AllocsPerRun(100, func() { l.Log(&record) }); n != 0 || l.Dropped() != 0 {
		t.Error(n)
	}
	if err := run(l)(); err != nil {
		t.Error(err)
	}
}

func TestLoggingDoesNotAllocate(t *testing.T) {
	l := NewAccessLog(&sink{}, 1<<20)
	spare := make([]byte, 0, 1<<20)
	l.waiting = make([]byte, 0, 1<<20)
	if n := testing.AllocsPerRun(1000, func() {
		l.Log(&record)
		l.waiting, l.records, spare = spare[:0], 0, l.waiting // as Run does
	}); n > poolAllocs {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrentLogging(t *testing.T) {
	var out sink
	l := NewAccessLog(&out, 1<<20)
	stop := run(l)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := record
			r.RequestID = fmt.Sprint(g)
			for range 500 {
				l.Log(&r)
			}
		})
	}
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(out.String()) {
		if lines++; !json.Valid([]byte(line)) {
			t.Fatalf("%q", line)
		}
	}
	if lines+int(l.Dropped()) != 2000 {
		t.Errorf("%d lines, %d dropped", lines, l.Dropped())
	}
}

// Whatever a client sends, it makes one line of valid JSON and cannot forge another; what is valid text comes through as it was, up to the cut.
func FuzzALine(f *testing.F) {
	f.Add("/\r\n{\"forged\":1}", "id\x00\xff", "GET")
	f.Add(strings.Repeat("é", 2000), "", "")
	f.Fuzz(func(t *testing.T, path, id, method string) {
		var out sink
		l := NewAccessLog(&out, 0)
		l.Log(&Record{Path: path, RequestID: id, Method: method})
		if _, err := l.flush(nil, nil); err != nil {
			t.Fatal(err)
		}
		line := out.String()
		var back map[string]any
		if strings.Count(line, "\n") != 1 || json.Unmarshal([]byte(line), &back) != nil || len(line) > 6*(maxPath+2*maxWord)+200 {
			t.Fatalf("%q", line)
		}
		if utf8.ValidString(path) && path != "" && len(path) <= maxPath && back["path"] != path {
			t.Fatalf("%q became %q", path, back["path"])
		}
	})
}
