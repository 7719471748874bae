package main

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/weir-mesh/weir/policy"
)

var digestSeed = maphash.MakeSeed()

// digest stands for a service's endpoints, in whatever order they come: what
// the API lists and what a proxy took are compared by it. Whether an endpoint
// is meshed and when it was last heard of are not in it.
type digest uint64

func (d *digest) add(e *policy.Endpoint) {
	var labels uint64
	for k, v := range e.Labels {
		labels += maphash.Comparable(digestSeed, [2]string{k, v})
	}
	*d += digest(maphash.Comparable(digestSeed, struct {
		id, ip, protocol, status string
		port, weight             int
		labels                   uint64
	}{e.ID, e.IP, e.Protocol, e.Status, e.Port, e.Weight, labels}))
}

func digestOf(endpoints []policy.Endpoint) (d digest) {
	for i := range endpoints {
		d.add(&endpoints[i])
	}
	return d
}

// news waits for one change of a service to reach those who follow it. A change
// is known by the weight of the service's first endpoint, which only grows.
type news struct {
	mu     sync.Mutex // guards what follows
	weight int
	left   map[int]struct{} // proxies that have not heard
	last   time.Time
	done   chan struct{} // nil when nothing is waited for
}

// expect begins to wait for a weight to reach the followers.
func (n *news) expect(weight int, followers []int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weight, n.left, n.done = weight, make(map[int]struct{}, len(followers)), make(chan struct{})
	for _, p := range followers {
		n.left[p] = struct{}{}
	}
}

// heard notes that a proxy has taken a weight.
func (n *news) heard(proxy, weight int, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done == nil || weight < n.weight {
		return
	}
	delete(n.left, proxy)
	if len(n.left) == 0 {
		n.last = at
		close(n.done)
		n.done = nil
	}
}

// wait returns when the last of the followers had heard.
func (n *news) wait(ctx context.Context) (time.Time, error) {
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-ctx.Done():
			n.mu.Lock()
			defer n.mu.Unlock()
			return time.Time{}, fmt.Errorf("weight %d has not reached %d followers: %w", n.weight, len(n.left), ctx.Err())
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last, nil
}
