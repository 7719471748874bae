package e2e

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// TestProxiesWhoseClocksAreFiveMinutesOff: two sidecars whose clocks are five
// minutes behind the control plane's, or ahead of it, join all the same, carry
// traffic with each other and with a third whose clock is right, and are told: in
// their log, as a metric, and in weir get proxies.
func TestProxiesWhoseClocksAreFiveMinutesOff(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			m := start(t)
			// The machine's own clock is the wrong one: the others are set apart from it.
			clockOf(t, m.Control.Pid()).set(t, -ahead)
			app := bare(t, m, "app")
			serve(t, app, "app", 8001, nil)
			enter(t, m, app, meshlab.Workload{Host: "app", Service: "app", Ports: []string{"8001"}})
			wrong := join(t, m, meshlab.Workload{Host: "wrong", Service: "caller"})
			right := join(t, m, meshlab.Workload{Host: "right", Service: "caller"})
			clockOf(t, right.Proxy.Pid()).set(t, -ahead)
			allow(t, m, "caller", "app")
			for _, n := range []*meshlab.Node{wrong, right} {
				await(t, m, "an answer", func() error {
					if a := ask(t, n, "-s", "http://app/"); a.Status != 200 {
						return fmt.Errorf("%d %s", a.Status, a.Body)
					}
					return nil
				})
			}
			await(t, m, "the clocks to be shown", func() error { return clocksShown(t, m, app, ahead) })
			await(t, m, "the log to tell", func() error {
				if !strings.Contains(app.Proxy.Log(), "the clock of this machine is not the control plane's") {
					return errors.New(app.Proxy.Tail())
				}
				return nil
			})
			if s := metric(t, app, "weir_clock_skew_seconds"); math.Abs(s-ahead.Seconds()) > 20 {
				t.Errorf("the metric shows %v s", s)
			}
		})
	}
}

func clocksShown(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, ahead time.Duration) error {
	list, err := m.API.Proxies(t.Context())
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.ServiceName == "app" && (p.ClockSkew == nil || math.Abs(*p.ClockSkew-ahead.Seconds()) > 20) {
			return fmt.Errorf("%s is shown as %+v", p.ID, p.ClockSkew)
		}
	}
	text := operate(t, m, "get", "proxies")
	sign := map[bool]string{true: `\+`, false: "-"}[ahead > 0]
	if !regexp.MustCompile(`(?m)^app\.default.* ` + sign + `(29|30|31)\ds `).MatchString(text) {
		return errors.New(text)
	}
	return nil
}

// metric is a figure of a sidecar.
func metric(t *testing.T, n *meshlab.Node, name string) float64 {
	t.Helper()
	for line := range strings.Lines(output(t, n, "curl", "-s", "http://127.0.0.1:15000/metrics")) {
		var v float64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err == nil {
				return v
			}
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}
