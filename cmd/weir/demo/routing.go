package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// showNames: the C library, asked for a service's names, gets its virtual
// address.
func (d *demo) showNames(ctx context.Context) (string, error) {
	services, err := d.mesh.API.Services(ctx)
	if err != nil {
		return "", err
	}
	virtual := ""
	for i := range services {
		if services[i].Service() == name(userService) {
			virtual = services[i].VirtualIPv4
		}
	}
	names := []string{userService, userService + ".default", userService + ".default.svc.cluster.local"}
	for _, n := range names {
		out, err := d.frontend.Output(ctx, "getent", "ahostsv4", n)
		if first, _, _ := strings.Cut(out, " "); err != nil || first != virtual {
			return "", errors.Join(fmt.Errorf("expected %s for the name %s, saw %q", virtual, n, out), err)
		}
	}
	answers, err := d.call(ctx, d.frontend, orderService, "/")
	if err := all200(answers, 1, err); err != nil {
		return "", fmt.Errorf("http://%s/: %w", orderService, err)
	}
	return fmt.Sprintf("%s, .default and .default.svc.cluster.local are %s, a virtual address; http://%s/ answers too", userService, virtual, orderService), nil
}

// showBalancing: in turns, each endpoint gets the same.
func (d *demo) showBalancing(ctx context.Context) (string, error) {
	const n = 60
	answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", n))
	if err := all200(answers, n, err); err != nil {
		return "", err
	}
	by := instances(answers)
	for _, u := range d.users {
		if by[u.Host.Name()] != n/len(d.users) {
			return "", fmt.Errorf("expected %d answers of each of %d endpoints, saw %s", n/len(d.users), len(d.users), counts(by))
		}
	}
	return fmt.Sprintf("%d requests to http://%s/ by round_robin: %s", n, userService, counts(by)), nil
}

// showHeaderRule: one header decides for the subset v2, without it both
// versions answer.
func (d *demo) showHeaderRule(ctx context.Context) (string, error) {
	const n = 30
	with, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", n), "-H", "version: beta")
	if err := all200(with, n, err); err != nil {
		return "", err
	}
	without, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", n))
	if err := all200(without, n, err); err != nil {
		return "", err
	}
	beta, plain := versions(with), versions(without)
	if beta["v2"] != n || plain["v1"] == 0 || plain["v2"] == 0 {
		return "", fmt.Errorf("expected %d of %d of v2 with \"version: beta\" and both versions without, saw %s, and %s", n, n, counts(beta), counts(plain))
	}
	return fmt.Sprintf("\"version: beta\" went to v2 %d of %d times; without it: %s", beta["v2"], n, counts(plain)), nil
}

func versions(answers []answer) map[string]int {
	count := map[string]int{}
	for _, a := range answers {
		count[a.header.Get("X-Version")]++
	}
	return count
}

// showIdentity: the app is told who calls, from the certificate; what the caller
// writes there itself does not arrive.
func (d *demo) showIdentity(ctx context.Context) (string, error) {
	const n = 6
	answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", n), "-H", "X-Source-Service: admin", "-H", "X-Source-Namespace: root")
	if err := all200(answers, n, err); err != nil {
		return "", err
	}
	for _, a := range answers {
		if got := a.header.Get("X-Caller"); got != "default/frontend" {
			return "", fmt.Errorf("expected the app to be told default/frontend, saw %q", got)
		}
	}
	return fmt.Sprintf("the app was told default/frontend %d of %d times; the forged \"X-Source-Service: admin\" never arrived", n, n), nil
}

// showCircuit: an endpoint fails, which its health check does not notice; its
// circuit opens, the caller sees nothing of it; it heals, its circuit closes.
func (d *demo) showCircuit(ctx context.Context) (string, error) {
	const n = 90
	sick := d.users[1]
	before, err := d.frontend.Metrics(ctx)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(d.apps.failFile(sick), nil, 0o644); err != nil {
		return "", err
	}
	answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", n))
	circuit, unknown := d.circuit(ctx, sick)
	after, unread := d.frontend.Metrics(ctx)
	healed := time.Now()
	if err := errors.Join(os.Remove(d.apps.failFile(sick)), unknown, unread); err != nil {
		return "", err
	}
	if err := all200(answers, n, err); err != nil {
		return "", fmt.Errorf("while %s answers 500: %w", sick.Host.Name(), err)
	}
	opens := after.CircuitBreakerOpens - before.CircuitBreakerOpens
	// On a machine that is slow enough the circuit's time is up before it is looked at.
	if opens == 0 || circuit == "closed" || instances(answers)[sick.Host.Name()] != 0 {
		return "", fmt.Errorf("expected the circuit of %s to open after %d failures, saw it %s and weir_circuit_opens +%d; answers of %s",
			sick.Host.Name(), failureThreshold, circuit, opens, counts(instances(answers)))
	}
	if err := d.awaitClosed(ctx, sick); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s answers 500: weir_circuit_opens +%d, its circuit is %s, 0 errors in %d requests; healed: closed after %.1f s",
		sick.Host.Name(), opens, circuit, n, time.Since(healed).Seconds()), nil
}

// circuit is the state of a node's circuit as the frontend's sidecar has it.
func (d *demo) circuit(ctx context.Context, n *meshlab.Node) (string, error) {
	st, err := d.frontend.Status(ctx)
	if err != nil {
		return "", err
	}
	for _, e := range st.Services[name(userService).String()].Endpoints {
		if e.Address == n.Join(atoi(userPort)) {
			return e.Circuit, nil
		}
	}
	return "", fmt.Errorf("the frontend's sidecar does not know %s", n.Join(atoi(userPort)))
}

// awaitClosed sends requests, as some must be the probe, until a circuit is
// closed and its endpoint answers.
func (d *demo) awaitClosed(ctx context.Context, n *meshlab.Node) error {
	const each = 6
	return d.mesh.Await(ctx, "the circuit of "+n.Host.Name(), func(ctx context.Context) error {
		answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[1-%d]", each))
		if err := all200(answers, each, err); err != nil {
			return err
		}
		circuit, err := d.circuit(ctx, n)
		if err != nil {
			return err
		}
		if circuit != "closed" || instances(answers)[n.Host.Name()] == 0 {
			return fmt.Errorf("expected it closed, saw it %s; answers of %s", circuit, counts(instances(answers)))
		}
		return nil
	})
}

// showRateLimit sets a limit, counts to it, and lifts it.
func (d *demo) showRateLimit(ctx context.Context) (string, error) {
	const limit = 100
	if _, err := d.mesh.API.UpdateSettings(ctx, userSettings(map[string]any{"limit": limit, "window": 60})); err != nil {
		return "", err
	}
	if err := d.mesh.Await(ctx, "the rate limit", d.firstLimited); err != nil {
		return "", err
	}
	answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/[2-%d]", limit+1))
	if err != nil || len(answers) != limit {
		return "", errors.Join(fmt.Errorf("expected %d answers, saw %s", limit, statuses(answers)), err)
	}
	if err := all200(answers[:limit-1], limit-1, nil); err != nil {
		return "", fmt.Errorf("within the limit: %w", err)
	}
	over := answers[limit-1]
	wait := over.header.Get("Retry-After")
	if over.status != http.StatusTooManyRequests || wait == "" {
		return "", fmt.Errorf("expected request %d to get 429 with Retry-After, saw %d with %q", limit+1, over.status, wait)
	}
	if _, err := d.mesh.API.UpdateSettings(ctx, userSettings(nil)); err != nil {
		return "", err
	}
	err = d.mesh.Await(ctx, "the end of the rate limit", func(ctx context.Context) error {
		answers, err := d.call(ctx, d.frontend, userService, "/lifted")
		return all200(answers, 1, err)
	})
	return fmt.Sprintf("%d requests in the window got 200, number %d got 429 with Retry-After: %s; lifted, 200 again", limit, limit+1, wait), err
}

// firstLimited sends one request: the first that is answered with the limit's
// fields is the first in the window.
func (d *demo) firstLimited(ctx context.Context) error {
	answers, err := d.call(ctx, d.frontend, userService, "/1")
	if err := all200(answers, 1, err); err != nil {
		return err
	}
	if answers[0].header.Get("RateLimit-Policy") == "" {
		return errors.New("expected RateLimit-Policy on the answer, saw none")
	}
	return nil
}
