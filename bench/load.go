package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// load is one run of the generator: `bench load`.
type load struct {
	mode    string // http, h2, grpc, echo, bulk, handshake or hold
	targets string // ADDRESS:PORT, comma separated; connections take them in turn
	conns   int
	streams int     // h2, grpc: requests under way on each connection
	fresh   bool    // http, echo: a new connection for each exchange
	rate    float64 // http, echo: exchanges per second at fixed times; 0 is as fast as answers come
	warm    time.Duration
	length  time.Duration

	proxy   string // processes whose CPU time is taken, comma separated
	backend int    // the same, told apart

	exchange   string // hold: http or echo
	cert, key  string // handshake: the client's, PEM
	alpn       string
	resume     bool
	concurrent int // hold: how many are opened at a time
}

func newLoadFlags(l *load) *flag.FlagSet {
	f := flag.NewFlagSet("bench load", flag.ContinueOnError)
	f.StringVar(&l.mode, "mode", "http", "http, h2, grpc, echo, bulk, handshake or hold")
	f.StringVar(&l.targets, "to", "", "ADDRESS:PORT, comma separated")
	f.IntVar(&l.conns, "conns", 64, "connections")
	f.IntVar(&l.streams, "streams", 8, "with -mode h2 or grpc: requests under way on each connection")
	f.BoolVar(&l.fresh, "fresh", false, "a new connection for each exchange")
	f.Float64Var(&l.rate, "rate", 0, "exchanges per second at fixed times; 0: as fast as answers come")
	f.DurationVar(&l.warm, "warm", 200*time.Millisecond, "time before the measurement")
	f.DurationVar(&l.length, "for", time.Second, "time of the measurement")
	f.StringVar(&l.proxy, "proxy", "", "processes whose CPU time is taken")
	f.IntVar(&l.backend, "backend", 0, "the backend's process")
	f.StringVar(&l.exchange, "exchange", "echo", "with -mode hold: http or echo, once on each connection")
	f.StringVar(&l.cert, "cert", "", "with -mode handshake: client certificate, PEM")
	f.StringVar(&l.key, "key", "", "with -mode handshake: its key")
	f.StringVar(&l.alpn, "alpn", "", "with -mode handshake: protocol to ask for")
	f.BoolVar(&l.resume, "resume", false, "with -mode handshake: resume sessions")
	f.IntVar(&l.concurrent, "concurrent", 16, "with -mode hold: opened at a time")
	return f
}

// args are the flags that make another process do this load.
func (l *load) args() []string {
	return []string{
		"load", "-mode", l.mode, "-to", l.targets, "-conns", strconv.Itoa(l.conns), "-streams", strconv.Itoa(l.streams), "-fresh=" + strconv.FormatBool(l.fresh),
		"-rate", strconv.FormatFloat(l.rate, 'f', -1, 64), "-warm", l.warm.String(), "-for", l.length.String(),
		"-proxy", l.proxy, "-backend", strconv.Itoa(l.backend), "-exchange", l.exchange, "-cert", l.cert, "-key", l.key,
		"-alpn", l.alpn, "-resume=" + strconv.FormatBool(l.resume), "-concurrent", strconv.Itoa(l.concurrent),
	}
}

// sample is what one run of the generator saw. All times are of the measured
// part, after the warm-up.
type sample struct {
	Units   int64         `json:"units"` // exchanges, connections, or bytes with bulk
	Seconds float64       `json:"seconds"`
	Proxy   map[int]int64 `json:"proxy_ns"` // CPU time by process
	Backend int64         `json:"backend_ns"`
	Client  int64         `json:"client_ns"`
	Busy    int64         `json:"busy_ns"` // of the whole machine, others' work too
	P50     time.Duration `json:"p50_ns"`
	P99     time.Duration `json:"p99_ns"`
	P999    time.Duration `json:"p999_ns"`
	Errors  int64         `json:"errors"`
	Error   string        `json:"error,omitempty"` // the first of them
	Late    int64         `json:"late"`            // exchanges that were due and had no free connection at the end
	Curve   tls.CurveID   `json:"curve,omitempty"` // of the handshakes
}

// proxyNs is the CPU time of all measured proxies together.
func (s *sample) proxyNs() (sum int64) {
	for _, ns := range s.Proxy {
		sum += ns
	}
	return sum
}

func runLoad(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	var l load
	f := newLoadFlags(&l)
	if err := f.Parse(args); err != nil {
		return err
	}
	if l.targets == "" || l.conns < 1 || l.length <= 0 {
		return fmt.Errorf("bench load: -to, -conns and -for must be given and above 0")
	}
	var s *sample
	var err error
	switch l.mode {
	case "h2", "grpc":
		if l.streams < 1 || l.fresh || l.rate != 0 {
			return fmt.Errorf("bench load: -mode %s keeps -streams, 1 or more, under way on connections that stay: without -fresh and -rate", l.mode)
		}
		s, err = drive(ctx, &l)
	case "http", "echo", "bulk":
		s, err = drive(ctx, &l)
	case "handshake":
		s, err = shake(ctx, &l)
	case "hold":
		return hold(ctx, &l, stdin, stdout)
	default:
		err = fmt.Errorf("bench load: -mode %q is not http, h2, grpc, echo, bulk, handshake or hold", l.mode)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(s)
}

// streamed tells whether requests share connections.
func (l *load) streamed() bool { return l.mode == "h2" || l.mode == "grpc" }

func (l *load) addresses() []string { return strings.Split(l.targets, ",") }

// meter reads the CPU clocks at the beginning and the end of the measured part.
type meter struct {
	proxy   []int
	backend int
	at      time.Time
	before  map[int]int64
	busy    int64
}

func (l *load) meter() (*meter, error) {
	m := &meter{backend: l.backend}
	for _, text := range strings.Split(l.proxy, ",") {
		if text == "" {
			continue
		}
		pid, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("bench load: -proxy %q: %w", l.proxy, err)
		}
		m.proxy = append(m.proxy, pid)
	}
	return m, nil
}

func (m *meter) all() []int {
	pids := append([]int{os.Getpid()}, m.proxy...)
	if m.backend != 0 {
		pids = append(pids, m.backend)
	}
	return pids
}

func (m *meter) begin(now time.Time) (err error) {
	m.at, m.before = now, map[int]int64{}
	if m.busy, err = busy(); err != nil {
		return err
	}
	for _, pid := range m.all() {
		if m.before[pid], err = cpuTime(pid); err != nil {
			return err
		}
	}
	return nil
}

// end fills in the times since begin.
func (m *meter) end(now time.Time, s *sample) error {
	s.Seconds, s.Proxy = now.Sub(m.at).Seconds(), map[int]int64{}
	for _, pid := range m.all() {
		ns, err := cpuTime(pid)
		if err != nil {
			return err
		}
		ns -= m.before[pid]
		switch pid {
		case os.Getpid():
			s.Client = ns
		case m.backend:
			s.Backend = ns
		default:
			s.Proxy[pid] = ns
		}
	}
	now2, err := busy()
	s.Busy = now2 - m.busy
	return err
}
