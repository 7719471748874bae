package identity

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func running(t *testing.T, change func(*Config, *control)) (*Identity, *control) {
	ca := newAuthority(t)
	l, dial := inMemory()
	c := newControl(t, ca)
	cfg := Config{
		Control: []string{"control:8081"}, Service: web, Dial: dial, Rand: func() float64 { return 0.5 },
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	}
	if change != nil {
		change(&cfg, c)
	}
	c.serve(l)
	id := newIdentity(t, cfg)
	if err := id.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if call := <-c.calls; call != "join" {
		t.Fatal(call)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- id.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Run:", err)
		}
	})
	return id, c
}

func TestRenewalAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, c := running(t, nil)
		for range 3 {
			before, at := id.Expiry(), time.Now()
			if call := <-c.calls; call != "renew" {
				t.Fatal(call)
			}
			synctest.Wait()
			if after := time.Since(at); after < 11*time.Hour || after > 13*time.Hour {
				t.Errorf("renewed after %s of 24h", after)
			}
			if !id.Expiry().After(before) {
				t.Error("the same certificate")
			}
		}
	})
}

func TestARenewalThatFailsIsTriedAgainAndTheCertificateStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, logs := logged()
		id, c := running(t, func(cfg *Config, _ *control) { cfg.Log = log })
		c.set(func() { c.fail = status.Error(codes.Unavailable, "no leader") })
		before := id.Expiry()
		for range 5 {
			<-c.calls
		}
		synctest.Wait()
		if !id.Expiry().Equal(before) {
			t.Error("the certificate changed")
		}
		if lines := logs.FilterMessage("certificate not renewed; trying again").Len(); lines != 5 {
			t.Errorf("%d lines", lines)
		}
		c.set(func() { c.fail = nil })
		<-c.calls
		synctest.Wait()
		if !id.Expiry().After(before) {
			t.Error("not renewed")
		}
	})
}

func TestAnExpiredCertificateIsReplacedByJoiningAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, c := running(t, func(cfg *Config, c *control) {
			c.life = 10 * time.Minute
			cfg.TokenFile = tokenFile(t, c.ca.token(web, time.Now().Add(1000*time.Hour)))
		})
		c.set(func() { c.fail = status.Error(codes.Unavailable, "away") })
		end := id.Expiry()
		for time.Now().Before(end) {
			<-c.calls
		}
		c.set(func() { c.fail = nil; c.joins = 0; c.renewed = 0 })
		for !id.Expiry().After(end) {
			<-c.calls
			synctest.Wait()
		}
		if c.joins == 0 || c.renewed != 0 {
			t.Errorf("%d joins, %d renewals", c.joins, c.renewed)
		}
	})
}

func TestAControlPlaneSetUpAnewIsJoinedByTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, c := running(t, func(cfg *Config, c *control) {
			cfg.TokenFile = tokenFile(t, c.ca.token(web, time.Now().Add(1000*time.Hour)))
		})
		c.set(func() { c.fail = status.Error(codes.PermissionDenied, "who are you") })
		if first, second := <-c.calls, <-c.calls; first != "renew" || second != "join" {
			t.Error(first, second)
		}
		c.set(func() { c.fail = nil })
		<-c.calls
		synctest.Wait()
		if time.Until(id.Expiry()) < 23*time.Hour {
			t.Error("not healed")
		}
	})
}

func TestABundleWithoutOurRootRenewsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, c := running(t, nil)
		next := newAuthority(t)
		c.set(func() { c.ca = next })
		at := time.Now()
		// The control plane still serves under the old root, so both must be
		// trusted to reach it; the test is that Run wakes.
		if err := id.SetBundle(next.pem()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			synctest.Wait()
			time.Sleep(time.Second) // fake
		}
		if len(c.calls) == 0 || time.Since(at) > time.Minute {
			t.Error("nothing was asked")
		}
	})
}

func TestShortLivesAreNotRenewedInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := running(t, func(_ *Config, c *control) { c.life = 90 * time.Second }) // back-dated 2 min: half is over
		start := time.Now()
		for range 10 {
			<-c.calls
		}
		if took := time.Since(start); took < 4*time.Minute {
			t.Errorf("10 renewals in %s", took)
		}
	})
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for _, cfg := range []Config{{Service: web}, {Control: []string{"x"}}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v", cfg)
		}
	}
	if err := newIdentity(t, Config{Control: []string{"x"}, Service: web}).Run(t.Context()); err == nil {
		t.Error("Run before Start")
	}
}
