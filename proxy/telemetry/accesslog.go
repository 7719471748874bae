package telemetry

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	defaultLogSize = 1 << 20                // bytes that may wait for the writer
	keepLogSize    = 64 << 10               // a buffer that grew above this is given back when it has been written
	flushEvery     = 100 * time.Millisecond // how long a record waits: one write takes many, and no request wakes another goroutine
	keepLineSize   = 16 << 10               // likewise for the buffer of one line: enough for a path that is all escapes
)

// Record is one access log line; empty fields are left out. Texts are cut at 512 bytes.
type Record struct {
	Time        time.Time
	Direction   Direction
	RequestID   string
	Source      string // SPIFFE ID or address
	Destination string // service.namespace or address
	Endpoint    string
	Method      string
	Path        string // cut at 2048 bytes
	Protocol    string // "http1", "http2", "tcp", …
	Status      int
	GRPC        string // the name of the grpc-status
	Reason      string // as in the weir-error header, or why a connection ended
	Duration    time.Duration
	BytesIn     int64
	BytesOut    int64
	Attempts    int
	Route       string // id of the rule
	Audit       string // ids of the rules that audit it, with spaces between
	TraceID     string
}

// AccessLog writes records as JSON lines. A nil *AccessLog is valid and writes nothing.
type AccessLog struct {
	size  int
	lines sync.Pool     // of *[]byte
	full  chan struct{} // tells Run that half of the room is used

	mu      sync.Mutex // guards what follows
	w       io.Writer
	waiting []byte
	records int // in waiting
	dropped uint64
}

// NewAccessLog returns a log to w that holds up to size bytes (0 = 1 MiB) until Run writes them; as much again may be in the writing. It starts nothing.
func NewAccessLog(w io.Writer, size int) *AccessLog {
	if size <= 0 {
		size = defaultLogSize
	}
	return &AccessLog{
		w: w, size: size,
		lines: sync.Pool{New: func() any { return new([]byte) }},
		full:  make(chan struct{}, 1),
	}
}

// SetOutput has what is written from now on go elsewhere; what waits, too.
func (l *AccessLog) SetOutput(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = w
}

// Log adds a record to those that wait. It never blocks on the writer: if that stalls until there is no room, the record is dropped and counted.
func (l *AccessLog) Log(r *Record) {
	if l == nil {
		return
	}
	line := l.lines.Get().(*[]byte)
	*line = r.appendLine((*line)[:0]) // before the lock, which is held for a copy only
	l.add(*line)
	if cap(*line) <= keepLineSize {
		l.lines.Put(line)
	}
}

func (l *AccessLog) add(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting)+len(line) > l.size {
		l.dropped++
		return
	}
	l.waiting = append(l.waiting, line...)
	l.records++
	if len(l.waiting) > l.size/2 {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

// Run writes until ctx ends, then writes what waits and returns. It outlasts failing writes: their records are counted as dropped; what it returns is the error
// of the last write, if that failed. A write that hangs holds Run, not Log.
func (l *AccessLog) Run(ctx context.Context) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var spare []byte
	var err error
	for {
		select {
		case <-ctx.Done():
			_, err = l.flush(spare, err)
			return err
		case <-tick.C:
		case <-l.full:
		}
		spare, err = l.flush(spare, err)
	}
}

// flush writes what waits and gives its buffer back; before is the outcome of the last write, and stays if there is nothing to write.
func (l *AccessLog) flush(spare []byte, before error) ([]byte, error) {
	l.mu.Lock()
	w, batch, records := l.w, l.waiting, l.records
	if records == 0 {
		l.mu.Unlock()
		return spare, before
	}
	l.waiting, l.records = spare[:0], 0
	l.mu.Unlock()

	n, err := w.Write(batch)
	if err == nil && n < len(batch) {
		err = io.ErrShortWrite
	}
	if err != nil {
		l.mu.Lock()
		l.dropped += uint64(records)
		l.mu.Unlock()
		err = fmt.Errorf("write access log: %w", err)
	}
	if cap(batch) > keepLogSize {
		batch = nil
	}
	return batch, err
}

// Dropped returns the number of records lost: no room, or a failed write.
func (l *AccessLog) Dropped() uint64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}
