package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// size is how much of everything there is, and what is done with it.
type size struct {
	few, all  int // services before and after those are added that nobody follows
	endpoints int // of each service, those of its own proxies included
	proxies   int // simulated
	follows   int // services that each follows: the hub, which all do, and others of the few
	real      int // services that a real proxy uses
	applied   int // services whose endpoints come by `weir apply`, one call after the other

	changes  int // of services with some followers, in each of two measurements
	every    time.Duration
	hub      int // changes of the service that all follow
	hubEvery time.Duration
	idle     time.Duration // how long idleness is watched, to be subtracted
	settle   time.Duration // before memory is read

	burst     int // changes at once
	burstOver int // services
	burstIn   time.Duration

	checkEvery time.Duration // interval of the health checks
}

var (
	fullSize = size{
		few: 1000, all: 10_000, endpoints: 10, proxies: 2000, follows: 20, real: 10, applied: 50,
		changes: 300, every: 40 * time.Millisecond, hub: 200, hubEvery: 250 * time.Millisecond,
		idle: 10 * time.Second, settle: 10 * time.Second,
		burst: 5000, burstOver: 100, burstIn: 10 * time.Second,
		checkEvery: 30 * time.Second,
	}
	quickSize = size{
		few: 100, all: 1000, endpoints: 10, proxies: 200, follows: 20, real: 10, applied: 10,
		changes: 200, every: 20 * time.Millisecond, hub: 100, hubEvery: 50 * time.Millisecond,
		idle: 4 * time.Second, settle: 5 * time.Second,
		burst: 1000, burstOver: 50, burstIn: 2 * time.Second,
		checkEvery: 4 * time.Second,
	}
)

// serviceName is that of the service with an index; 0 is the hub.
func serviceName(i int) policy.ServiceName {
	return policy.ServiceName{Namespace: "default", Name: fmt.Sprintf("s%05d", i)}
}

// addresses are those of the endpoints, where nobody is.
const addresses = "10.128.0.0/9"

// address gives each endpoint one of its own.
func address(service, endpoint int) string {
	n := service*64 + endpoint
	return fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255)
}

// endpoint is one of a service's. Its weight says which change of it was last.
func endpoint(service, i, weight int) policy.Endpoint {
	e := policy.DefaultEndpoint()
	name := serviceName(service)
	e.Namespace, e.ServiceName, e.ID = name.Namespace, name.Name, fmt.Sprintf("e%02d", i)
	e.IP, e.Port, e.Weight = address(service, i), 8001, weight
	e.Labels = map[string]string{"version": fmt.Sprintf("v%d", i%2+1)}
	return e
}

// home is the service that a proxy stands beside. The hub has none: it would
// have as many endpoints as it has followers.
func (z *size) home(proxy int) int { return 1 + proxy%(z.few-1) }

// residents is how many proxies stand beside a service, each with an endpoint.
func (z *size) residents(service int) int {
	if service == 0 || service >= z.few {
		return 0
	}
	n := z.proxies / (z.few - 1)
	if service-1 < z.proxies%(z.few-1) {
		n++
	}
	return n
}

// followed are the services that a proxy follows, in order: the hub, and a run
// of the few that begins elsewhere for each, so that all have about as many
// followers.
func (z *size) followed(proxy int) []int {
	out := []int{0}
	for k := range z.follows - 1 {
		out = append(out, 1+(proxy*(z.follows-1)+k)%(z.few-1))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// followers lists the proxies that follow each of the few.
func (z *size) followers() [][]int {
	out := make([][]int, z.few)
	for p := range z.proxies {
		for _, s := range z.followed(p) {
			out[s] = append(out[s], p)
		}
	}
	return out
}
