package proxy

import (
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestAClockThatIsWrongIsToldOnceAndShown, and once more when it is right.
func TestAClockThatIsWrongIsToldOnceAndShown(t *testing.T) {
	p := sidecar(t)
	core, logged := observer.New(zap.InfoLevel)
	p.log = zap.New(core)
	for _, c := range []struct {
		ahead time.Duration
		lines int
	}{{0, 0}, {20 * time.Second, 0}, {5 * time.Minute, 1}, {5 * time.Minute, 1}, {0, 2}, {-5 * time.Minute, 3}} {
		p.clockTold(time.Now().Add(-c.ahead))
		if logged.Len() != c.lines {
			t.Errorf("%v ahead: %d lines are logged, want %d", c.ahead, logged.Len(), c.lines)
		}
		shown, err := strconv.ParseFloat(figure(p, "weir_clock_skew_seconds"), 64)
		if d := shown - c.ahead.Seconds(); err != nil || d < 0 || d > 5 {
			t.Errorf("%v ahead: shown is %v, %v", c.ahead, shown, err)
		}
	}
}
