package proxy

import (
	"time"

	"go.uber.org/zap"
)

// skewToTell is how far two clocks may differ before the log says so: less can be
// a slow answer.
const skewToTell = 30 * time.Second

// clockTold compares our clock with what the control plane's shows, which is of a
// moment ago. Certificates allow for a clock that is ten minutes behind, and for
// one that is ahead as far as they hold.
func (p *Proxy) clockTold(control time.Time) {
	skew := time.Now().Round(0).Sub(control)
	p.metrics.ClockSkew(skew)
	off := skew.Abs() > skewToTell
	switch {
	case p.skewed.Swap(off) == off:
	case off:
		p.log.Warn("the clock of this machine is not the control plane's; certificates of others may look expired or not yet valid: set it right (NTP)",
			zap.Duration("ahead_by", skew.Round(time.Second)), zap.Time("control_plane", control))
	default:
		p.log.Info("the clock of this machine is the control plane's again", zap.Duration("ahead_by", skew.Round(time.Millisecond)))
	}
}
