package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/health"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

const (
	// What is kept of an endpoint's checks beyond the control plane that made them:
	// of each turn the results that led to it, 10 at most, and 30 in all. They are
	// written with the status, which a turn has written anyway, so that quiet costs
	// nothing and an outage of everything some 3 KB for each endpoint. What is lost
	// with a leader is what came since: results that changed nothing.
	turnResults = 10
	keptResults = 30
	// allResults is how many are shown.
	allResults = 100
	// forgetEvery is how often the leader removes what is kept of endpoints that are
	// no more.
	forgetEvery = 10 * time.Minute
)

// turn stores that an endpoint has turned, with the results that led to it.
func (p *plane) turn(ctx context.Context, t *policy.Target, status string) error {
	name := t.Service()
	before, err := p.store.Checked(ctx, name, t.ID)
	if err != nil {
		return err
	}
	var own []api.HealthResult
	if st, ok := p.health.Status(name, t.ID); ok {
		own = results(st.History)
	}
	record, err := json.Marshal(joined(kept(before), last(own, turnResults), keptResults))
	if err != nil {
		return err
	}
	return p.store.Turn(ctx, name, t.ID, status, record)
}

// kept reads a record; one that cannot be read is none.
func kept(record []byte) (out []api.HealthResult) {
	if json.Unmarshal(record, &out) != nil {
		return nil
	}
	return out
}

// joined gives results and later ones, without those that are in both; the newest
// n of them.
func joined(before, after []api.HealthResult, n int) []api.HealthResult {
	known := make(map[api.HealthResult]bool, len(before))
	for _, r := range before {
		known[r] = true
	}
	out := before[:len(before):len(before)]
	for _, r := range after {
		if !known[r] {
			out = append(out, r)
		}
	}
	return last(out, n)
}

func last(list []api.HealthResult, n int) []api.HealthResult {
	return list[max(0, len(list)-n):]
}

func results(history []health.Result) []api.HealthResult {
	out := make([]api.HealthResult, len(history))
	for i, r := range history {
		out[i] = api.HealthResult{At: unix(r.At), Took: r.Took.Seconds(), Check: r.Check, Passed: r.Passed, Healthy: r.Healthy, Detail: r.Detail}
	}
	return out
}

// checks gives the results of an endpoint: those of this control plane, after what
// was kept when it last turned, here or elsewhere.
func (p *plane) checks(name policy.ServiceName, id string, own []health.Result) []api.HealthResult {
	ctx, cancel := context.WithTimeout(context.Background(), freshWithin)
	defer cancel()
	record, err := p.store.Checked(ctx, name, id)
	if err != nil && !errors.Is(err, store.ErrUnavailable) {
		p.log.Warn("what was kept of an endpoint's checks cannot be read", zap.Error(err))
	}
	return joined(kept(record), results(own), allResults)
}

// forgetChecks removes now and then what is kept of endpoints that are no more.
func (p *plane) forgetChecks(ctx context.Context) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		if err := p.store.ForgetChecked(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("what is kept of the checks of endpoints that are no more stays for now", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
