package telemetry

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counts are the figures that a request changes, in one piece: it touches six words on a few cache lines, where as many counters of the metrics library
// are as many objects, each behind pointers of its own, and its histogram counts every observation three times. They become metrics when they are asked for.
type counts struct {
	received, sent                    atomic.Uint64 // bytes
	routed, unrouted, failed, limited atomic.Uint64

	nanos   atomic.Uint64
	buckets [len(bounds) + 1]atomic.Uint64
	codes   [maxCodes]atomic.Uint64
	grpc    [len(grpcCodes)]atomic.Uint64
}

// bounds of the histogram: from half a millisecond, which a proxied request on one machine takes,
// to the default timeout of 30 s. 15 bounds, as each is a series per service.
var bounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
}

func (c *counts) observe(d time.Duration) {
	d = max(d, 0)
	c.nanos.Add(uint64(d))
	at := 0
	for at < len(bounds) && d > bounds[at] {
		at++
	}
	c.buckets[at].Add(1)
}

// histogram gives what has been observed: how many, and how many up to each bound. The sum may be of a request more or fewer.
func (c *counts) histogram() (all uint64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, len(bounds))
	for i, bound := range bounds {
		all += c.buckets[i].Load()
		upTo[bound.Seconds()] = all
	}
	return all + c.buckets[len(bounds)].Load(), upTo
}

// maxCodes is more than the labels that there are for status codes.
const maxCodes = 80

// codes gives each status code its place in counts.codes: registered ones have their own, others that of their class,
// so that a server that makes up codes makes no series.
var codes = newCodeTable()

type codeTable struct {
	places [600]uint8
	labels []string // by place; the first is that of what is no status
}

func newCodeTable() codeTable {
	t := codeTable{labels: []string{other}}
	places := map[string]uint8{other: 0}
	for code := range t.places {
		label := codeLabel(code)
		at, ok := places[label]
		if !ok && len(t.labels) < maxCodes {
			at = uint8(len(t.labels))
			places[label] = at
			t.labels = append(t.labels, label)
		}
		t.places[code] = at
	}
	return t
}

// place gives the place of a code; the first stands for what is no status.
func (t *codeTable) place(code int) uint8 {
	if uint(code) < uint(len(t.places)) {
		return t.places[code]
	}
	return 0
}

// codeLabel is the code itself for 0 (no answer), registered ones and 499 (nginx: the client went away), and the class of others.
func codeLabel(code int) string {
	switch {
	case code == 0, code == 499, http.StatusText(code) != "":
		return strconv.Itoa(code)
	case code >= 100 && code <= 599:
		return strconv.Itoa(code/100) + "xx"
	}
	return other
}

// served describes the metrics that are made of counts.
type served struct {
	requests, bytes, limited, picks, failures, duration, grpc *prometheus.Desc
}

// A collector makes metrics of the counts of a registry's services.
type collector struct{ *Registry }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.requests, c.bytes, c.limited, c.picks, c.failures, c.duration, c.grpc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Counts of zero make no series, but the histogram is there from the start.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.inUse() {
		labels := []string{string(s.key.direction), s.key.service, s.key.namespace}
		count := func(d *prometheus.Desc, n *atomic.Uint64, last ...string) {
			if v := n.Load(); v > 0 {
				ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append(labels[:3:3], last...)...)
			}
		}
		for i, label := range codes.labels {
			count(c.requests, &s.codes[i], label)
		}
		for i, label := range grpcCodes {
			count(c.grpc, &s.grpc[i], label)
		}
		count(c.bytes, &s.received, "received")
		count(c.bytes, &s.sent, "sent")
		count(c.picks, &s.routed, "routed")
		count(c.picks, &s.unrouted, "no_endpoint")
		count(c.failures, &s.failed)
		count(c.limited, &s.limited)
		all, upTo := s.histogram()
		ch <- prometheus.MustNewConstHistogram(c.duration, all, time.Duration(s.nanos.Load()).Seconds(), upTo, labels...)
	}
}

// inUse lists the services, so that nobody waits while metrics are made of them.
func (r *Registry) inUse() []*Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Service, 0, len(r.services))
	for _, s := range r.services {
		all = append(all, s)
	}
	return all
}
