package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// showControlKilled: without a control plane traffic goes on; after a restart
// everything that was answered with 200 is there.
func (d *demo) showControlKilled(ctx context.Context) (string, error) {
	const n = 60
	// The last answer before the end is the hardest to keep.
	rule, err := d.mesh.Allow(ctx, "frontend", "some/other-service")
	if err != nil {
		return "", err
	}
	before, err := d.stored(ctx)
	if err != nil {
		return "", err
	}
	d.mesh.Control.Kill()
	answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", n))
	_, tcpErr := d.cacheRoundTrip(ctx, "weir-demo", "without a control plane")
	if err := errors.Join(all200(answers, n, err), tcpErr); err != nil {
		return "", fmt.Errorf("while it is dead: %w", err)
	}
	d.mesh.Control.Name += " (killed)"
	if err := d.mesh.StartControl(ctx); err != nil {
		return "", err
	}
	after, err := d.stored(ctx)
	if err != nil {
		return "", err
	}
	if before.text != after.text {
		return "", fmt.Errorf("expected after the restart\n%s\nsaw\n%s", before.text, after.text)
	}
	if err := errors.Join(d.awaitProxies(ctx), d.mesh.API.DeleteSecurityRule(ctx, rule)); err != nil {
		return "", err
	}
	return fmt.Sprintf("kill -9: %d of %d requests got 200 without it, %s too; restarted: all of %d endpoints, %d rules and the settings are there",
		n, n, cacheService, after.endpoints, after.rules), nil
}

// stored is what the control plane has been told.
type stored struct {
	text             string
	endpoints, rules int
}

func (d *demo) stored(ctx context.Context) (s stored, err error) {
	all := struct {
		Endpoints map[string][]policy.Endpoint
		Traffic   []policy.TrafficRule
		Security  []policy.SecurityRule
		Settings  map[string]any
	}{Endpoints: map[string][]policy.Endpoint{}}
	for _, service := range []string{userService, orderService, cacheService} {
		endpoints, err := d.mesh.API.Endpoints(ctx, name(service))
		if err != nil {
			return s, err
		}
		for i := range endpoints {
			endpoints[i].LastSeen = 0 // moves on by itself
		}
		all.Endpoints[service] = endpoints
		s.endpoints += len(endpoints)
	}
	if all.Traffic, err = d.mesh.API.TrafficRules(ctx, name(userService)); err != nil {
		return s, err
	}
	if all.Security, err = d.mesh.API.SecurityRules(ctx); err != nil {
		return s, err
	}
	if all.Settings, err = d.mesh.API.Settings(ctx); err != nil {
		return s, err
	}
	s.rules = len(all.Traffic) + len(all.Security)
	b, err := json.MarshalIndent(all, "", "  ")
	s.text = string(b)
	return s, err
}

// awaitProxies waits until all sidecars are back with the control plane.
func (d *demo) awaitProxies(ctx context.Context) error {
	return d.mesh.Await(ctx, "the sidecars' return", func(ctx context.Context) error {
		proxies, err := d.mesh.API.Proxies(ctx)
		// Those that are away are remembered from before.
		proxies = slices.DeleteFunc(proxies, func(p api.ProxyStatus) bool { return p.State == api.Away })
		if err == nil && len(proxies) != len(d.sidecars()) {
			err = fmt.Errorf("expected %d, saw %d", len(d.sidecars()), len(proxies))
		}
		return err
	})
}

// showMetrics: the frontend's sidecar has counted what the demo has counted, by
// service and status; the control plane's sums are those of the sidecars.
func (d *demo) showMetrics(ctx context.Context) (string, error) {
	m, err := d.frontend.Metrics(ctx)
	if err != nil {
		return "", err
	}
	text, err := d.frontend.Output(ctx, "curl", "-q", "-sS", "--noproxy", "*", "http://127.0.0.1:15000/metrics")
	if err != nil {
		return "", err
	}
	if err := d.sent.compare(outboundCounts(text)); err != nil {
		return "", err
	}
	sent := d.sent.total()
	if m.OutboundRequests != uint64(sent) {
		return "", fmt.Errorf("expected outbound_requests %d, as sent, saw %d", sent, m.OutboundRequests)
	}
	var in, out uint64
	err = d.mesh.Await(ctx, "the control plane's sums", func(ctx context.Context) error {
		in, out, err = d.sumSidecars(ctx)
		if err != nil {
			return err
		}
		sums, err := d.mesh.API.Metrics(ctx)
		if err == nil && (sums.Proxies.TotalOutboundRequests != out || sums.Proxies.TotalInboundRequests != in) {
			err = fmt.Errorf("expected %d in, %d out, as the sidecars have it, saw %d and %d", in, out, sums.Proxies.TotalInboundRequests, sums.Proxies.TotalOutboundRequests)
		}
		return err
	})
	return fmt.Sprintf("%d requests sent, %d counted by the frontend's sidecar, by status too; the control plane sums all sidecars to %d in, %d out", sent, m.OutboundRequests, in, out), err
}

func (d *demo) sumSidecars(ctx context.Context) (in, out uint64, err error) {
	for _, n := range d.sidecars() {
		m, err := n.Metrics(ctx)
		if err != nil {
			return 0, 0, err
		}
		in, out = in+m.InboundRequests, out+m.OutboundRequests
	}
	return in, out, nil
}

// outboundCounts reads weir_requests_total of a sidecar's metrics in text.
func outboundCounts(text string) tally {
	t := tally{}
	for line := range strings.Lines(text) {
		labels, ok := strings.CutPrefix(strings.TrimSpace(line), "weir_requests_total{")
		labels, value, closed := strings.Cut(labels, "} ")
		if !ok || !closed || !strings.Contains(labels, `direction="outbound"`) {
			continue
		}
		code, err := strconv.Atoi(label(labels, "code"))
		n, notNumber := strconv.ParseFloat(value, 64)
		if err != nil || notNumber != nil {
			continue
		}
		service := label(labels, "service")
		if t[service] == nil {
			t[service] = map[int]int{}
		}
		t[service][code] += int(n)
	}
	return t
}

func label(labels, name string) string {
	for _, l := range strings.Split(labels, ",") {
		if v, ok := strings.CutPrefix(l, name+"="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

// compare makes sure that what was counted is what was sent.
func (t tally) compare(counted tally) error {
	for _, pair := range [][2]tally{{t, counted}, {counted, t}} {
		for service, statuses := range pair[0] {
			for status := range statuses {
				if want, got := t[service][status], counted[service][status]; want != got {
					return fmt.Errorf("expected %d requests to %s with status %d to be counted, saw %d", want, service, status, got)
				}
			}
		}
	}
	return nil
}
