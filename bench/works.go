package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// work is one thing that all proxies are made to do.
type work struct {
	name  string
	title string
	// figures are what is compared, the first before all; lower is better.
	figures []figure
	only    []string                            // subjects that take part, all but "direct" where empty
	without []string                            // subjects that do not
	slow    bool                                // more than a few seconds for one subject: fewer rounds
	before  func(context.Context, *stage) error // once, before the first round
	after   func(context.Context, *stage) error // once, after the last
	measure func(context.Context, *stage, *subject, tempo) (cell, error)
}

// figure is one of the numbers that a work gives.
type figure struct {
	key   string // in cells, and in the work's name after its own
	unit  string
	added bool // over what there is without a proxy, in the same round
}

// cell is what one subject gave in one round, by key.
type cell map[string]float64

// tempo is how long and how often.
type tempo struct {
	rounds, slowRounds int // slow: what takes more than ten seconds for one subject
	warm, length       time.Duration
	paced              time.Duration // length at a fixed rate
	idle               int           // idle connections whose memory is taken
	settle             time.Duration
	conns              []int // connections of the scale run
	services           []int
}

// Many short rounds pair better than few long ones: what else the machine does
// changes from second to second.
var (
	fullTempo = tempo{
		rounds: 11, slowRounds: 2, warm: 200 * time.Millisecond, length: 600 * time.Millisecond, paced: 2 * time.Second,
		idle: 9000, settle: 5 * time.Second, conns: []int{1, 10, 100, 1000, 9000}, services: []int{1, 10, 1000},
	}
	quickTempo = tempo{
		rounds: 3, slowRounds: 1, warm: 100 * time.Millisecond, length: 250 * time.Millisecond, paced: 600 * time.Millisecond,
		idle: 1000, settle: 700 * time.Millisecond, conns: []int{1, 100, 1000}, services: []int{1, 100},
	}
)

// Where a load goes: to the server that all share, through one proxy, or to the
// app beside the far proxy, through both; or to the far proxy only.
type route int

const (
	throughOne route = iota
	throughTwo
	farOnly
)

const mebi, gibi = 1 << 20, 1 << 30

// works lists all, in the order in which they run and are reported.
func works() []work {
	small := []string{"haproxy-64k"} // a tuning for large answers and bulk
	return []work{
		cpuWork("http-small", "HTTP/1.1 keep-alive, 64 connections, 128 B answers, one proxy", "µs/request", throughOne, plainPort, load{mode: "http", conns: 64}, small),
		cpuWork("http-48k", "the same with 48 KiB answers", "µs/request", throughOne, plainPort+3, load{mode: "http", conns: 64}, nil),
		cpuWork("http-mtls", "HTTP/1.1 keep-alive, 64 connections, 128 B answers, two proxies with mTLS between", "µs/request, both", throughTwo, meshPort, load{mode: "http", conns: 64}, small),
		cpuWork("h2-small", "HTTP/2, 8 connections with 8 requests under way on each, 128 B answers, one proxy", "µs/request", throughOne, plainPort+4, load{mode: "h2", conns: 8, streams: 8}, small),
		cpuWork("grpc-unary", "calls of gRPC, 8 connections with 8 under way on each, 100 B each way, one proxy", "µs/call", throughOne, plainPort+5, load{mode: "grpc", conns: 8, streams: 8}, small),
		cpuWork("grpc-mtls", "calls of gRPC, 8 connections with 8 under way on each, 100 B each way, two proxies with mTLS between", "µs/call, both", throughTwo, meshPort+5, load{mode: "grpc", conns: 8, streams: 8}, small),
		cpuWork("l4-pingpong", "TCP, 64 connections, 100 B each way, one proxy", "µs/exchange", throughOne, plainPort+1, load{mode: "echo", conns: 64}, small),
		cpuWork("l4-bulk", "TCP, one stream to the client, one proxy", "s/GiB", throughOne, plainPort+2, load{mode: "bulk", conns: 1}, nil),
		cpuWork("mtls-pingpong", "TCP, 64 connections, 100 B each way, two proxies with mTLS between", "µs/exchange, both", throughTwo, meshPort+1, load{mode: "echo", conns: 64}, small),
		cpuWork("mtls-bulk", "TCP, one stream to the client, two proxies with mTLS between", "s/GiB, both", throughTwo, meshPort+2, load{mode: "bulk", conns: 1}, nil),
		cpuWork("handshake-full", "mTLS connection with a full handshake and one exchange, terminating side", "µs/connection", farOnly, meshPort+1, load{mode: "handshake", conns: 4}, small),
		cpuWork("handshake-resumed", "the same, resumed", "µs/connection", farOnly, meshPort+1, load{mode: "handshake", conns: 4, resume: true}, small),
		cpuWork("conn-l4", "TCP, a new connection for each exchange of 100 B, 32 at a time", "µs/connection", throughOne, plainPort+1, load{mode: "echo", conns: 32, fresh: true}, small),
		cpuWork("conn-http", "HTTP/1.1, a new connection for each request, 32 at a time", "µs/request", throughOne, plainPort, load{mode: "http", conns: 32, fresh: true}, small),
		latencyWork("latency-1000", 1000, small),
		latencyWork("latency-5000", 5000, small),
		logWork(),
		idleWork(small),
		memoryWork("mem-l4", "memory per idle connection, TCP, one proxy", throughOne, plainPort+1, "echo", small),
		memoryWork("mem-http", "memory per idle connection, HTTP/1.1 keep-alive after one request, one proxy", throughOne, plainPort, "http", small),
		memoryWork("mem-tls", "memory per idle connection, TCP over mTLS, each of the two proxies", throughTwo, meshPort+1, "echo", small),
		scaleConns(small),
		scaleServices(),
	}
}

// rateUnit is what is counted per second.
func (w *work) rateUnit() string {
	if strings.Contains(w.name, "bulk") {
		return "GiB/s"
	}
	return "units/s"
}

// takesPart tells whether a subject does a work.
func (w *work) takesPart(name string) bool {
	for _, n := range w.without {
		if n == name {
			return false
		}
	}
	if len(w.only) == 0 {
		return name != "direct"
	}
	for _, n := range w.only {
		if n == name {
			return true
		}
	}
	return false
}

// place completes a load for a subject: where from, where to, whose CPU time.
func (s *stage) place(sub *subject, to route, port int, l load) (*meshlab.Node, load, error) {
	var measured []*meshlab.Process
	from := sub.client
	host, app := s.server, s.backend
	if to != throughOne {
		host, app = sub.far, sub.app
	}
	if to != farOnly && sub.near != nil {
		measured = append(measured, sub.near)
	}
	if to != throughOne {
		measured = append(measured, sub.behind)
	}
	if to == farOnly {
		from, l.cert, l.key, l.alpn = s.direct, sub.shaker.cert, sub.shaker.key, sub.shaker.alpn
	}
	l.targets, l.backend = host.Join(port), app.Pid()
	var err error
	l.proxy, err = pids(measured...)
	return from, l, err
}

// cpuWork measures CPU time per unit.
func cpuWork(name, title, unit string, to route, port int, l load, without []string) work {
	w := work{name: name, title: title, without: without, figures: []figure{{key: "cpu", unit: unit}}}
	w.measure = func(ctx context.Context, s *stage, sub *subject, t tempo) (cell, error) {
		l := l
		l.warm, l.length = t.warm, t.length
		if l.mode == "handshake" {
			l.length *= 2 // some hundred a second
		}
		from, l, err := s.place(sub, to, port, l)
		if err != nil {
			return nil, err
		}
		got, err := s.run(ctx, from, &l)
		if err != nil {
			return nil, err
		}
		return perUnit(got, l.mode)
	}
	return w
}

// perUnit turns a sample into a cell: µs for each exchange, or s for each GiB.
func perUnit(got *sample, mode string) (cell, error) {
	if got.Units == 0 {
		return nil, fmt.Errorf("nothing was done; %d errors, the first: %s", got.Errors, got.Error)
	}
	units, per := float64(got.Units), 1e3
	if mode == "bulk" {
		units, per = units/gibi, 1e9
	}
	scale := func(ns int64) float64 { return float64(ns) / units / per }
	known := got.proxyNs() + got.Client + got.Backend
	c := cell{
		"cpu": scale(got.proxyNs()), "total": scale(known), "rate": units / got.Seconds,
		"p50": float64(got.P50) / 1e3, "p99": float64(got.P99) / 1e3, "p999": float64(got.P999) / 1e3,
		"errors": float64(got.Errors), "late": float64(got.Late),
		"others": max(0, float64(got.Busy-known)/1e9/got.Seconds), // CPUs' worth of foreign work
	}
	if got.Curve != 0 {
		c["curve"] = float64(got.Curve)
	}
	return c, nil
}

// latencyWork measures at fixed times, whatever the answers take.
func latencyWork(name string, rate float64, without []string) work {
	w := work{
		name: name, title: fmt.Sprintf("HTTP/1.1 at a fixed %.0f requests/s over 64 connections, one proxy: time added", rate),
		figures: []figure{{key: "p50", unit: "µs", added: true}, {key: "p99", unit: "µs", added: true}, {key: "p999", unit: "µs", added: true}, {key: "cpu", unit: "µs/request"}},
		without: without,
	}
	w.measure = func(ctx context.Context, s *stage, sub *subject, t tempo) (cell, error) {
		from, l, err := s.place(sub, throughOne, plainPort, load{mode: "http", conns: 64, rate: rate, warm: t.warm, length: t.paced})
		if err != nil {
			return nil, err
		}
		got, err := s.run(ctx, from, &l)
		if err != nil {
			return nil, err
		}
		return perUnit(got, l.mode)
	}
	w.only = []string{"direct", "weir", shortcutPeer, beforePeer, "haproxy", "nginx", "envoy"}
	return w
}

// logWork is http-small with the access log on, which the peers do not write.
func logWork() work {
	w := cpuWork("http-small-log", "as http-small, weir writing its access log to a file", "µs/request", throughOne, plainPort, load{mode: "http", conns: 64}, nil)
	w.only = []string{"weir"}
	w.before = func(ctx context.Context, s *stage) error { return s.setAccessLog(ctx, true) }
	w.after = func(ctx context.Context, s *stage) error { return s.setAccessLog(ctx, false) }
	return w
}

// idleWork takes the memory of a proxy that has just been started.
func idleWork(without []string) work {
	return work{
		name: "mem-idle", slow: true, title: "resident memory of an idle proxy, weir's joined to a mesh", without: without,
		figures: []figure{{key: "rss", unit: "MiB"}},
		measure: func(ctx context.Context, s *stage, sub *subject, t tempo) (cell, error) {
			if err := sub.restart(ctx); err != nil {
				return nil, err
			}
			if err := sleep(ctx, t.settle); err != nil {
				return nil, err
			}
			b, err := memory(sub.near)
			return cell{"rss": float64(b) / mebi}, err
		},
	}
}

// first is how many connections stand before the memory is taken for the first
// time: what is allocated once is not counted to the connections.
const first = 100

// memoryWork takes the growth of memory from some idle connections to many.
func memoryWork(name, title string, to route, port int, exchange string, without []string) work {
	w := work{name: name, title: title, slow: true, without: without, figures: []figure{{key: "near", unit: "KiB/connection"}}}
	if to == throughTwo {
		w.figures = append(w.figures, figure{key: "far", unit: "KiB/connection"})
	}
	w.measure = func(ctx context.Context, s *stage, sub *subject, t tempo) (c cell, err error) {
		if err := sub.restart(ctx); err != nil {
			return nil, err
		}
		from, l, err := s.place(sub, to, port, load{mode: "hold", conns: first, exchange: exchange, concurrent: 16, length: 1})
		if err != nil {
			return nil, err
		}
		few, err := s.hold(ctx, from, &l)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, few.release()) }()
		before, err := sub.memories(ctx, t)
		if err != nil {
			return nil, err
		}
		l.conns = t.idle
		many, err := s.hold(ctx, from, &l)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, many.release()) }()
		after, err := sub.memories(ctx, t)
		if err != nil {
			return nil, err
		}
		per := func(i int) float64 { return float64(after[i]-before[i]) / 1024 / float64(t.idle) }
		return cell{"near": per(0), "far": per(1), "conns": float64(t.idle)}, nil
	}
	return w
}

// memories waits for the proxies to settle and takes the memory of both.
func (sub *subject) memories(ctx context.Context, t tempo) (m [2]int64, err error) {
	if err := sleep(ctx, t.settle); err != nil {
		return m, err
	}
	if m[0], err = memory(sub.near); err != nil {
		return m, err
	}
	m[1], err = memory(sub.behind)
	return m, err
}
