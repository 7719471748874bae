package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// measure does everything, one thing after the other, and reports.
func measure(ctx context.Context, bin string, z size, logf func(string, ...any)) (rep *report, err error) {
	s, err := openStage(ctx, bin, z, logf)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rep = newReport(bin, &z)
	for _, step := range []struct {
		name string
		do   func(context.Context, *stage, *report) error
	}{
		{"a mesh of a few services", small},
		{"the services that are followed", loadFew},
		{"the proxies", connect},
		{"changes beside few services", func(ctx context.Context, s *stage, r *report) error {
			return cost(ctx, s, r, "few")
		}},
		{"the services that nobody follows", loadRest},
		{"changes beside all services", func(ctx context.Context, s *stage, r *report) error {
			return cost(ctx, s, r, "all")
		}},
		{"changes that all follow", fanOut},
		{"a burst", burst},
		{"a real proxy in the large mesh", large},
		{"kill -9 and a restart", restart},
		{"health checks", checks},
	} {
		began := time.Now()
		if err := step.do(ctx, s, rep); err != nil {
			rep.compare()
			return rep, fmt.Errorf("%s: %w\n%s", step.name, err, s.mesh.Control.Tail())
		}
		logf("%s: %.1f s", step.name, time.Since(began).Seconds())
	}
	rep.compare()
	return rep, nil
}

// small reads what the programs take before there is anything to know.
func small(ctx context.Context, s *stage, rep *report) error {
	rss, err := s.rss(ctx)
	if err != nil {
		return err
	}
	rep.set("control_rss_idle_mib", rss)
	if s.size.real == 0 {
		return nil
	}
	if _, err := s.register(ctx, 0, s.size.real); err != nil {
		return err
	}
	rss, err = s.realProxy(ctx, "near")
	rep.set("proxy_rss_few_mib", rss)
	return err
}

func large(ctx context.Context, s *stage, rep *report) error {
	if s.size.real == 0 {
		return nil
	}
	rss, err := s.realProxy(ctx, "far")
	rep.set("proxy_rss_all_mib", rss)
	return err
}

func loadFew(ctx context.Context, s *stage, rep *report) error {
	if _, err := s.register(ctx, s.size.real, s.size.few); err != nil {
		return err
	}
	rss, err := s.rss(ctx)
	rep.set("control_rss_few_mib", rss)
	return err
}

func loadRest(ctx context.Context, s *stage, rep *report) error {
	began := time.Now()
	n, err := s.apply(ctx, s.size.few, s.size.few+s.size.applied)
	if err != nil {
		return err
	}
	rep.set("apply_endpoints_per_s", float64(n)/time.Since(began).Seconds())
	began = time.Now()
	n, err = s.register(ctx, s.size.few+s.size.applied, s.size.all)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	rep.set("load_endpoints", float64(n))
	rep.set("load_seconds", took)
	rep.set("load_endpoints_per_s", float64(n)/took)
	rep.set("load_retries", float64(s.retried.Load()))
	rss, err := s.rss(ctx)
	rep.set("control_rss_all_mib", rss)
	if err != nil {
		return err
	}
	files, err := ofFiles(s.pid())
	rep.set("control_rss_all_files_mib", float64(files)/(1<<20))
	return err
}

// connect starts the proxies: each brings an endpoint on a lease and asks for
// its services.
func connect(ctx context.Context, s *stage, rep *report) error {
	began := time.Now()
	if err := s.fleet.start(ctx, s.api(), s.mesh.ControlAddr(), s.dial()); err != nil {
		return err
	}
	rep.set("certificates_per_s", float64(s.size.proxies)/time.Since(began).Seconds())
	began = time.Now()
	if err := s.attached(ctx, 2*time.Minute); err != nil {
		return err
	}
	if err := s.equal(ctx, time.Minute); err != nil {
		return err
	}
	rep.set("connect_seconds", time.Since(began).Seconds())
	rep.set("connect_bytes_per_proxy", float64(s.fleet.read.Load())/float64(s.size.proxies))
	rss, err := s.rss(ctx)
	rep.set("control_rss_proxies_mib", rss)
	return err
}

// usage is what was used between two looks.
type usage struct {
	at      time.Time
	cpu     time.Duration
	bytes   int64
	updates int64
	writes  int64 // of the proxies
}

func (s *stage) look() (usage, error) {
	cpu, err := cpuTime(s.pid())
	return usage{time.Now(), cpu, s.fleet.read.Load(), s.fleet.updates.Load(), s.fleet.writes.Load()}, err
}

func (u usage) since(before usage) usage {
	return usage{cpu: u.cpu - before.cpu, bytes: u.bytes - before.bytes, updates: u.updates - before.updates, writes: u.writes - before.writes, at: time.Time{}.Add(u.at.Sub(before.at))}
}

func (u usage) seconds() float64 { return u.at.Sub(time.Time{}).Seconds() }

// watchIdle tells what is used when nothing changes: leases are kept alive.
func (s *stage) watchIdle(ctx context.Context) (usage, error) {
	before, err := s.look()
	if err != nil {
		return usage{}, err
	}
	if err := sleep(ctx, s.size.idle); err != nil {
		return usage{}, err
	}
	after, err := s.look()
	return after.since(before), err
}

// cost changes endpoints of services with some followers, and tells how long
// each change took to reach the last of them and what it cost.
func cost(ctx context.Context, s *stage, rep *report, beside string) error {
	idle, err := s.watchIdle(ctx)
	if err != nil {
		return err
	}
	before, err := s.look()
	if err != nil {
		return err
	}
	took, err := s.change(ctx, s.size.changes, s.size.every, func(i int) int { return 1 + i*7%(s.size.few-1) })
	if err != nil {
		return err
	}
	after, err := s.look()
	if err != nil {
		return err
	}
	used, n := after.since(before), float64(len(took))
	rest := used.seconds() / idle.seconds()
	rep.set("idle_writes_per_s", float64(idle.writes)/idle.seconds())
	rep.set("idle_cpu_percent_"+beside, 100*idle.cpu.Seconds()/idle.seconds())
	rep.set("change_cpu_us_"+beside, (used.cpu.Seconds()-rest*idle.cpu.Seconds())/n*1e6)
	rep.set("bytes_per_change_"+beside, (float64(used.bytes)-rest*float64(idle.bytes))/n)
	rep.set("updates_per_change_"+beside, float64(used.updates)/n)
	rep.set("propagation_"+beside+"_changes", n)
	rep.times("propagation_"+beside, took)
	return nil
}

// fanOut does the same with the service that all follow.
func fanOut(ctx context.Context, s *stage, rep *report) error {
	before, err := s.look()
	if err != nil {
		return err
	}
	ownBefore, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	took, err := s.change(ctx, s.size.hub, s.size.hubEvery, func(int) int { return 0 })
	if err != nil {
		return err
	}
	after, err := s.look()
	used := after.since(before)
	heard := float64(len(took) * s.size.proxies)
	rep.set("fanout_cpu_us_per_proxy", used.cpu.Seconds()*1e6/heard)
	rep.set("propagation_hub_changes", float64(len(took)))
	rep.times("propagation_hub", took)
	if err != nil {
		return err
	}
	own, err := cpuTime(os.Getpid())
	rep.set("fanout_cpu_us_per_follower", (own-ownBefore).Seconds()*1e6/heard)
	return err
}

// change makes n changes at a rate, each of the service that pick says, and gives
// the time from each call to the last follower. A change that is due waits for
// the one before it of the same service. Where they take so long that the time
// for them is over half as much again, no more are made: that is slow, not wrong.
func (s *stage) change(ctx context.Context, n int, every time.Duration, pick func(i int) int) ([]time.Duration, error) {
	enough := time.Now().Add(time.Duration(n)*every*3/2 + 5*time.Second)
	ctx, cancel := context.WithDeadline(ctx, enough.Add(time.Minute))
	defer cancel()
	took, errs := make([]time.Duration, n), make([]error, n)
	busy := make([]sync.Mutex, s.size.few)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var all sync.WaitGroup
	made := 0
	for ; made < n && time.Now().Before(enough); made++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		i, service := made, pick(made)
		busy[service].Lock()
		all.Go(func() {
			defer busy[service].Unlock()
			took[i], errs[i] = s.reach(ctx, service)
		})
	}
	all.Wait()
	return took[:made], errors.Join(errs...)
}

// reach changes a service and tells how long it took to reach all its followers.
func (s *stage) reach(ctx context.Context, service int) (time.Duration, error) {
	weight, news := s.fleet.next(service), &s.fleet.news[service]
	news.expect(weight, s.fleet.followers[service])
	began := time.Now()
	if err := s.api().Register(ctx, endpoint(service, 0, weight)); err != nil {
		return 0, err
	}
	last, err := news.wait(ctx)
	return last.Sub(began), err
}

// burst makes many changes at once. Each proxy gets fewer updates than there
// were changes, and all end with the state that the API shows.
func burst(ctx context.Context, s *stage, rep *report) error {
	z := &s.size
	before, err := s.look()
	if err != nil {
		return err
	}
	client := s.api()
	possible := 0
	for i := range z.burst {
		possible += len(s.fleet.followers[1+i%z.burstOver])
	}
	tick := time.NewTicker(z.burstIn / time.Duration(z.burst))
	defer tick.Stop()
	order := make([]sync.Mutex, z.few) // a later weight must not be stored before an earlier one
	err = each(ctx, 0, z.burst, func(ctx context.Context, i int) error {
		<-tick.C
		service := 1 + i%z.burstOver
		order[service].Lock()
		defer order[service].Unlock()
		return client.Register(ctx, endpoint(service, 0, s.fleet.next(service)))
	})
	if err != nil {
		return err
	}
	wrote := time.Now()
	lost := 0.0
	if err := s.equal(ctx, time.Minute); err != nil {
		s.logf("burst: %v", err)
		want, werr := s.want(ctx)
		if werr != nil {
			return werr
		}
		lost = float64(s.fleet.behind(want))
	}
	after, err := s.look()
	used := after.since(before)
	rep.set("burst_responses", float64(used.writes)-rep.values["idle_writes_per_s"]*used.seconds())
	rep.set("burst_seconds", wrote.Sub(before.at).Seconds())
	rep.set("burst_settle_ms", float64(time.Since(wrote).Milliseconds()))
	rep.set("burst_updates", float64(used.updates))
	rep.set("burst_updates_possible", float64(possible))
	rep.set("burst_coalesced", 1-float64(used.updates)/float64(possible))
	rep.set("burst_lost", lost)
	rep.set("burst_cpu_us_per_change", used.cpu.Seconds()*1e6/float64(z.burst))
	return err
}

// restart kills the control plane and starts it again. The proxies come back
// by themselves with the versions they hold, and what they hold is unchanged.
func restart(ctx context.Context, s *stage, rep *report) error {
	before, err := s.look()
	if err != nil {
		return err
	}
	lostBefore := s.fleet.lost.Load()
	s.mesh.Control.Kill()
	killed := time.Now()
	if err := s.mesh.StartControl(ctx); err != nil {
		return err
	}
	rep.set("restart_api_seconds", time.Since(killed).Seconds())
	if err := s.attached(ctx, 2*time.Minute); err != nil {
		return err
	}
	rep.set("restart_seconds", time.Since(killed).Seconds())
	bytes, updates := s.fleet.read.Load()-before.bytes, s.fleet.updates.Load()-before.updates
	rep.set("restart_bytes_per_proxy", float64(bytes)/float64(s.size.proxies))
	rep.set("restart_updates", float64(updates))
	if err := s.equal(ctx, time.Minute); err != nil {
		return err
	}
	rep.set("restart_services_lost", float64(s.fleet.lost.Load()-lostBefore))
	// The proof that they follow: a change of what all follow.
	if _, err := s.change(ctx, 3, 100*time.Millisecond, func(int) int { return 0 }); err != nil {
		return err
	}
	rss, err := s.rss(ctx)
	rep.set("control_rss_restarted_mib", rss)
	return err
}

// percentile takes the nearest rank.
func percentile(sorted []time.Duration, p float64) time.Duration {
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func inOrder(took []time.Duration) []time.Duration { return slices.Sorted(slices.Values(took)) }
