package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// showNoRule: who is not allowed is refused, and is told why.
func (d *demo) showNoRule(ctx context.Context) (string, error) {
	answers, err := d.call(ctx, d.stranger, userService, "/", "-H", "X-Source-Service: frontend")
	if err := refused(answers, string(policy.NoRule), err); err != nil {
		return "", err
	}
	return fmt.Sprintf("the stranger, in the mesh but in no rule, got 403, weir-error: %s; posing as frontend did not help", policy.NoRule), nil
}

// showModes: plaintext from outside is refused in strict mode, taken in
// permissive mode, and refused again.
func (d *demo) showModes(ctx context.Context) (string, error) {
	if err := d.refusedOutside(ctx); err != nil {
		return "", fmt.Errorf("in strict mode: %w", err)
	}
	// Who is outside has no name: only a rule for everybody lets it in.
	rule, err := d.mesh.Allow(ctx, policy.Any, userService)
	if err != nil {
		return "", err
	}
	if err := d.setMode(ctx, policy.Permissive); err != nil {
		return "", err
	}
	err = d.mesh.Await(ctx, "permissive mode", func(ctx context.Context) error {
		answers, err := curl(ctx, d.outside, d.plainURL())
		return all200(answers, 1, err)
	})
	if err := errors.Join(err, d.setMode(ctx, policy.Strict), d.mesh.API.DeleteSecurityRule(ctx, rule)); err != nil {
		return "", err
	}
	if err := d.mesh.Await(ctx, "strict mode again", d.refusedOutside); err != nil {
		return "", err
	}
	return fmt.Sprintf("plaintext from outside: 403, weir-error: %s; in permissive mode 200; in strict mode 403 again", policy.MTLSRequired), nil
}

// plainURL is an endpoint's own address.
func (d *demo) plainURL() string { return "http://" + d.users[0].Join(atoi(userPort)) + "/" }

func (d *demo) refusedOutside(ctx context.Context) error {
	answers, err := curl(ctx, d.outside, d.plainURL())
	return refused(answers, string(policy.MTLSRequired), err)
}

func (d *demo) setMode(ctx context.Context, mode policy.MTLSMode) error {
	_, err := d.mesh.API.UpdateSettings(ctx, map[string]any{"mtls_mode": mode})
	return err
}

// The marks that are sent and looked for in the capture: one within the mesh,
// one out of it.
const (
	secretMark = "weir-demo-secret-5b1f0c7a"
	openMark   = "weir-demo-in-the-open-9d3e"
)

// showEncryption sends a mark through the mesh, in every place there is, and
// looks for it in all that crosses the bridge. The same capture sees another
// mark that leaves the mesh, so that it is known to see.
func (d *demo) showEncryption(ctx context.Context) (string, error) {
	c, err := openCapture(d.mesh.Lab.Bridge(), secretMark, openMark)
	if err != nil {
		return "", fmt.Errorf("capture on the bridge: %w", err)
	}
	defer c.close()
	if err := d.sendSecret(ctx); err != nil {
		return "", err
	}
	answers, err := curl(ctx, d.frontend, "http://"+d.outside.Join(atoi(userPort))+"/"+openMark)
	if err := all200(answers, 1, err); err != nil {
		return "", fmt.Errorf("to a server outside the mesh: %w", err)
	}
	// Packets come in order: once the last mark is seen, all before it was looked at.
	err = d.mesh.Await(ctx, "the capture", func(context.Context) error {
		if c.seen().hits[openMark] < 2 { // question and answer
			return errors.New("expected the mark sent in plaintext out of the mesh, saw nothing of it")
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return d.judge(c.seen())
}

// secretRequests is how many requests carry the secret mark: each three times,
// and each answer twice.
const secretRequests = 20

func (d *demo) sendSecret(ctx context.Context) error {
	answers, err := d.call(ctx, d.frontend, userService, fmt.Sprintf("/%s/[1-%d]", secretMark, secretRequests),
		"-H", "X-Note: "+secretMark, "-d", "body="+secretMark)
	if err := all200(answers, secretRequests, err); err != nil {
		return err
	}
	for _, a := range answers {
		if strings.Count(a.body, secretMark) != 2 {
			return fmt.Errorf("expected the mark in the answer as in the request, saw %q", a.body)
		}
	}
	_, err = d.cacheRoundTrip(ctx, secretMark, secretMark)
	return err
}

// judge says what a capture has seen between the services.
func (d *demo) judge(s sight) (string, error) {
	var packets, bytes int
	for _, from := range d.sidecars() {
		for _, to := range d.sidecars() {
			f := s.between[pair{from.Addr4(), to.Addr4()}].plus(s.between[pair{from.Addr6(), to.Addr6()}])
			packets, bytes = packets+f.packets, bytes+f.bytes
		}
	}
	if least := secretRequests * 5 * len(secretMark); bytes < least {
		return "", fmt.Errorf("expected at least %d bytes between the services, saw %d in %d packets", least, bytes, packets)
	}
	if s.hits[secretMark] > 0 || s.lost > 0 {
		return "", fmt.Errorf("expected nothing of the mark and no packet lost to the capture, saw %d packets with it, %d lost", s.hits[secretMark], s.lost)
	}
	return fmt.Sprintf("of %d packets (%d bytes) captured between services, HTTP and TCP, 0 held the mark; one sent out of the mesh was seen in %d",
		packets, bytes, s.hits[openMark]), nil
}

// showTCP: a protocol that weir knows nothing of goes the same way, by name.
func (d *demo) showTCP(ctx context.Context) (string, error) {
	value := "kept at " + time.Now().Format(time.RFC3339Nano)
	before, err := d.frontend.Metrics(ctx)
	if err != nil {
		return "", err
	}
	spoken, err := d.cacheRoundTrip(ctx, "weir-demo", value)
	if err != nil {
		return "", err
	}
	after, err := d.frontend.Metrics(ctx)
	if err != nil {
		return "", err
	}
	if after.OutboundRequests != before.OutboundRequests {
		return "", fmt.Errorf("expected connections that are not HTTP to count no requests, saw %d", after.OutboundRequests-before.OutboundRequests)
	}
	return spoken, nil
}

// cacheRoundTrip stores a value in the cache and gets it back, from the
// frontend; the text tells how.
func (d *demo) cacheRoundTrip(ctx context.Context, key, value string) (string, error) {
	if !d.apps.redis {
		return d.echoRoundTrip(ctx, key+" "+value+"\n")
	}
	set, err := d.frontend.Output(ctx, "redis-cli", "-h", cacheService, "-p", cachePort, "SET", key, value)
	if err != nil || strings.TrimSpace(set) != "OK" {
		return "", errors.Join(fmt.Errorf("expected OK of SET, saw %q", set), err)
	}
	got, err := d.frontend.Output(ctx, "redis-cli", "-h", cacheService, "-p", cachePort, "GET", key)
	if err != nil || strings.TrimSpace(got) != value {
		return "", errors.Join(fmt.Errorf("expected %q of GET, saw %q", value, got), err)
	}
	return fmt.Sprintf("redis-cli -h %s: SET and GET gave back the same %d bytes", cacheService, len(value)), nil
}

func (d *demo) echoRoundTrip(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := d.frontend.DialContext(ctx, "tcp", cacheService+":"+cachePort)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	got := make([]byte, len(line))
	if _, err = c.Write([]byte(line)); err == nil {
		_, err = io.ReadFull(c, got)
	}
	if err != nil || string(got) != line {
		return "", errors.Join(fmt.Errorf("expected the echo %q, saw %q", line, got), err)
	}
	return fmt.Sprintf("an echo server by the name %s gave back the same %d bytes", cacheService, len(line)), nil
}
