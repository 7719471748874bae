package controlplane

import (
	"context"
	"maps"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/controlplane/publish"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// A change of mTLS modes is made in two turns, so that no request is lost: who
// sends plain text and who takes it hear of it at different times. In the first
// turn callers send plain text only where they did before and will, and receivers
// take what they took or will take; mTLS is taken in every mode. When all proxies
// have that, the new modes alone hold.
const (
	// leastTurn is what a caller may take from the choice of a connection until its
	// request is there, and what another control plane may be behind this one.
	leastTurn = time.Second
	// mostTurn bounds how long a proxy that does not answer keeps a mode from
	// being strict.
	mostTurn = 10 * time.Second
	turnPoll = 100 * time.Millisecond
	maxTurns = 8 // modes of before that are remembered
)

// meshModes are the modes of a state.
type meshModes struct {
	settings policy.Settings
	rules    map[string]policy.MTLSMode // of those that allow, by id
}

func modesOf(st *store.State) *meshModes {
	m := &meshModes{settings: st.Settings, rules: map[string]policy.MTLSMode{}}
	for i := range st.Security {
		if r := &st.Security[i]; r.Does() == policy.Allow {
			m.rules[r.ID] = r.MTLSMode
		}
	}
	return m
}

// turnsLocked notes the modes of before, if those of now are others.
func (v *view) turnsLocked(old, now *store.State) {
	before, after := modesOf(old), modesOf(now)
	if sameModes(&old.Settings, &now.Settings) && !after.turnsFrom(before) {
		return
	}
	if v.before = append(v.before, before); len(v.before) > maxTurns {
		v.before = v.before[1:]
	}
}

// turnsFrom tells whether the mode of a rule is another. A rule that is gone allows
// nothing from now on; a new one may have its callers send plain text.
func (m *meshModes) turnsFrom(before *meshModes) bool {
	for id, mode := range m.rules {
		if was, ok := before.rules[id]; ok && was != mode || !ok && mode == policy.Disabled {
			return true
		}
	}
	return false
}

// sameModes compares what Settings.ModesFor goes by.
func sameModes(a, b *policy.Settings) bool {
	if a.MTLSMode != b.MTLSMode || len(a.Namespaces) != len(b.Namespaces) {
		return false
	}
	for name, n := range a.Namespaces {
		if b.Namespaces[name].MTLSMode != n.MTLSMode {
			return false
		}
	}
	return sameServiceModes(a, b) && sameServiceModes(b, a)
}

func sameServiceModes(a, b *policy.Settings) bool {
	for name, s := range a.Services {
		if o := b.Services[name]; o.MTLSMode != s.MTLSMode || !maps.Equal(o.MTLSPorts, s.MTLSPorts) {
			return false
		}
	}
	return true
}

// combineLocked gives a service's modes of now with those of before.
func (v *view) combineLocked(name policy.ServiceName, both func(now, before policy.MTLSMode) policy.MTLSMode) policy.Modes {
	now := v.state.Settings.ModesFor(name)
	for _, b := range v.before {
		before := b.settings.ModesFor(name)
		if before.Equal(now) {
			continue
		}
		next := policy.Modes{MTLS: both(now.MTLS, before.MTLS), PortModes: map[uint16]policy.MTLSMode{}}
		for _, ports := range []map[uint16]policy.MTLSMode{now.PortModes, before.PortModes} {
			for port := range ports {
				next.PortModes[port] = both(now.Mode(port), before.Mode(port))
			}
		}
		now = next
	}
	return now
}

// callersModesLocked are the modes that callers go by.
func (v *view) callersModesLocked(name policy.ServiceName) policy.Modes {
	return v.combineLocked(name, func(now, before policy.MTLSMode) policy.MTLSMode {
		if now == policy.Disabled {
			return before
		}
		return now
	})
}

// receiversModesLocked are the modes that the service itself goes by.
func (v *view) receiversModesLocked(name policy.ServiceName) policy.Modes {
	return v.combineLocked(name, policy.MTLSMode.Looser)
}

// plaintextLocked tells whether a rule has its callers send plain text.
func (v *view) plaintextLocked(r *policy.SecurityRule) bool {
	if r.MTLSMode != policy.Disabled {
		return false
	}
	for _, b := range v.before {
		if b.rules[r.ID] != policy.Disabled {
			return false
		}
	}
	return true
}

// ruleModeLocked is the mode in which a service takes what a rule allows.
func (v *view) ruleModeLocked(r *policy.SecurityRule, name policy.ServiceName) policy.MTLSMode {
	mode := r.MTLSMode
	for _, b := range v.before {
		was, ok := b.rules[r.ID]
		if !ok || was == mode {
			continue
		}
		if was == "" {
			was = b.settings.ModesFor(name).MTLS
		}
		if mode == "" {
			mode = v.state.Settings.ModesFor(name).MTLS
		}
		mode = mode.Looser(was)
	}
	return mode
}

// turning tells whether modes of before still count.
func (v *view) turning() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return len(v.before) > 0
}

// turned has the modes of now alone count.
func (v *view) turned() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.before = nil
}

// changeModes ends first turns.
func (p *plane) changeModes(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.turns:
		}
		if !p.view.turning() || !p.awaitTurn(ctx) {
			continue
		}
		p.view.turned()
		p.pub.Changed(publish.Change{AllServices: true, AllInbounds: true})
		p.log.Info("the mTLS modes that were set hold")
	}
}

// awaitTurn waits until all proxies have taken the first turn; false is that ctx
// has ended.
func (p *plane) awaitTurn(ctx context.Context) bool {
	tick := time.NewTicker(turnPoll)
	defer tick.Stop()
	began := time.Now()
	since := began // the last change
	for {
		select {
		case <-ctx.Done():
			return false
		case <-p.turns:
			since = time.Now()
		case now := <-tick.C:
			if now.Sub(began) >= mostTurn {
				p.log.Warn("not all proxies have taken the change of mTLS modes; it holds all the same", zap.Duration("after", mostTurn))
				return true
			}
			if now.Sub(since) >= leastTurn && p.pub.Settled() {
				return true
			}
		}
	}
}
