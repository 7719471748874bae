package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func newIdentity(t testing.TB, cfg Config) *Identity {
	t.Helper()
	id, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// logged gives a logger and what came out of it.
func logged() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zap.InfoLevel)
	return zap.New(core), logs
}

func TestJoinWithAToken(t *testing.T) {
	ca := newAuthority(t)
	l := listen(t)
	newControl(t, ca).serve(l)
	id := newIdentity(t, Config{
		Control: []string{l.Addr().String()}, Service: web,
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	})
	if err := id.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(id.Expiry()); left < 23*time.Hour || id.TrustDomain() != domain {
		t.Error(left, id.TrustDomain())
	}
	if _, _, serverErr, clientErr := handshake(t, workload(t, ca, store).ServerTLS(), id.ClientTLS(store)); serverErr != nil || clientErr != nil {
		t.Error(serverErr, clientErr)
	}
}

func TestWhatWaitingDoesNotHealIsSaidAtOnce(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	for name, tc := range map[string]struct {
		token string
		spoil func(*control)
		serve func(*tls.Config)
		want  string
	}{
		"no token":              {"", nil, nil, "weir token create --service web --namespace shop"},
		"not a token":           {"hunter2", nil, nil, "not a join token"},
		"expired token":         {ca.token(web, time.Now().Add(-time.Minute)), nil, nil, "expired at"},
		"another service":       {ca.token(store, later), nil, nil, "is of shop/store, but this proxy is to be shop/web"},
		"another control plane": {other.token(web, later), nil, nil, "not the one of the join token"},
		"another trust domain": {ca.token(web, later, func(m map[string]any) { m["td"] = "elsewhere" }), nil, nil,
			"not of our trust domain"},
		"refused": {ca.token(web, later), func(c *control) { c.fail = status.Error(codes.Unauthenticated, "signature is wrong") }, nil,
			"refused: signature is wrong"},
		"a workload instead of the control plane": {ca.token(web, later), nil, func(c *tls.Config) {
			h := mustHeld(t, ca, store, time.Now(), later)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{h.chain[0].Raw, ca.cert.Raw}, PrivateKey: h.cert.PrivateKey}}
		}, "the server is shop/store"},
		"the right root, but not its signature": {ca.token(web, later), nil, func(c *tls.Config) {
			h := mustHeld(t, ca.impostor(t), policy.ControlPlane, time.Now(), later)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{h.chain[0].Raw, ca.cert.Raw}, PrivateKey: h.cert.PrivateKey}}
		}, "unknown authority"},
		"no root shown": {ca.token(web, later), nil, func(c *tls.Config) {
			c.Certificates[0].Certificate = c.Certificates[0].Certificate[:1]
		}, "no certificate that it shows has the fingerprint"},
		"answers from another trust domain": {ca.token(web, later), func(c *control) {
			c.spoil = func(r *wire.JoinResponse) { r.TrustDomain = "elsewhere" }
		}, nil, "elsewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := newControl(t, ca)
			if tc.spoil != nil {
				tc.spoil(c)
			}
			var change []func(*tls.Config)
			if tc.serve != nil {
				change = append(change, tc.serve)
			}
			c.serve(l, change...)
			file := filepath.Join(t.TempDir(), "none")
			if tc.token != "" {
				file = tokenFile(t, tc.token)
			}
			err := newIdentity(t, Config{Control: []string{l.Addr().String()}, Service: web, TokenFile: file}).Start(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want …%s…", err, tc.want)
			}
			if tc.token != "" && strings.Contains(err.Error(), tc.token) {
				t.Error("the token is told")
			}
			if c.fail == nil && c.spoil == nil && c.joins > 0 {
				t.Error("the token was sent to whom it should not")
			}
		})
	}
}

func TestAnswersThatAreNotForUs(t *testing.T) {
	ca := newAuthority(t)
	key := newKey(t)
	now := time.Now()
	for name, spoil := range map[string]func(*wire.JoinResponse){
		"another key": func(r *wire.JoinResponse) {
			r.Certificate = encode(ca.leaf(t, web, &key.PublicKey, now, now.Add(time.Hour)))
		},
		"no certificate":  func(r *wire.JoinResponse) { r.Certificate = nil },
		"another bundle":  func(r *wire.JoinResponse) { r.Bundle = newAuthority(t).pem() },
		"an empty bundle": func(r *wire.JoinResponse) { r.Bundle = nil },
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := newControl(t, ca)
			c.spoil = spoil
			c.serve(l)
			id := newIdentity(t, Config{Control: []string{l.Addr().String()}, Service: web, TokenFile: tokenFile(t, ca.token(web, now.Add(time.Hour)))})
			if err := id.join(t.Context()); err == nil || id.now.Load() != nil {
				t.Error("taken:", err)
			}
		})
	}
}

func TestTheNextAddressIsTried(t *testing.T) {
	ca := newAuthority(t)
	dead, l := listen(t), listen(t)
	dead.Close()
	newControl(t, ca).serve(l)
	id := newIdentity(t, Config{
		Control: []string{dead.Addr().String(), l.Addr().String()}, Service: web,
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	})
	if err := id.join(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAControlPlaneThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		l, dial := inMemory()
		up := time.Now().Add(time.Minute)
		tries := 0
		log, logs := logged()
		newControl(t, ca).serve(l)
		id := newIdentity(t, Config{
			Control: []string{"control:8081"}, Service: web, Log: log,
			TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				tries++
				if time.Now().Before(up) {
					return nil, os.ErrDeadlineExceeded
				}
				return dial(ctx, network, address)
			},
		})
		if err := id.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if tries < 6 || tries > 30 {
			t.Errorf("%d tries in a minute", tries)
		}
		if got := logs.FilterMessage("no certificate yet; trying again").Len(); got != tries-1 {
			t.Errorf("%d lines for %d failures", got, tries-1)
		}
	})
}

func TestStartEndsWithItsContextAndSaysWhy(t *testing.T) {
	ca := newAuthority(t)
	dead := listen(t)
	dead.Close()
	ctx, cancel := context.WithCancel(t.Context())
	id := newIdentity(t, Config{
		Control: []string{dead.Addr().String()}, Service: web, Rand: func() float64 { cancel(); return 0 },
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	})
	if err := id.Start(ctx); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

// running starts an Identity inside a synctest bubble and gives its control plane.
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

func TestRestartWithoutControlPlane(t *testing.T) {
	ca := newAuthority(t)
	l := listen(t)
	stop := newControl(t, ca).serve(l)
	cfg := Config{
		Control: []string{l.Addr().String()}, Service: web, CacheDir: filepath.Join(t.TempDir(), "cache"),
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	}
	first := newIdentity(t, cfg)
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	for path, want := range map[string]os.FileMode{cfg.CacheDir: 0o700, filepath.Join(cfg.CacheDir, cacheName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Error(path, info.Mode(), err)
		}
	}
	second := newIdentity(t, cfg)
	if err := second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !second.Expiry().Equal(first.Expiry()) || second.TrustDomain() != domain {
		t.Error(second.Expiry(), second.TrustDomain())
	}
	if _, _, serverErr, clientErr := handshake(t, first.ServerTLS(), second.ClientTLS(web)); serverErr != nil || clientErr != nil {
		t.Error(serverErr, clientErr)
	}
	// A bundle set meanwhile is kept too.
	both := append(ca.pem(), newAuthority(t).pem()...)
	if err := second.SetBundle(both); err != nil {
		t.Fatal(err)
	}
	third := newIdentity(t, cfg)
	if err := third.Start(t.Context()); err != nil || len(third.now.Load().trust.roots) != 2 {
		t.Error(err)
	}
}

func TestCachesThatAreNotTaken(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	good, err := formatCache(mustHeld(t, ca, web, now.Add(-time.Minute), now.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	of := func(a *authority, name policy.ServiceName, until time.Time) []byte {
		text, err := formatCache(mustHeld(t, a, name, now.Add(-time.Hour), until))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	swapped := mustHeld(t, ca, web, now, now.Add(time.Hour))
	swapped.cert.PrivateKey = newKey(t)
	mixed, err := formatCache(swapped)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		text []byte
		mode os.FileMode
	}{
		"empty":                 {nil, 0o600},
		"cut":                   {good[:len(good)/3], 0o600},
		"rubbish":               {bytes.Repeat([]byte{0, 0xff, '-'}, 1000), 0o600},
		"key of another":        {mixed, 0o600},
		"expired":               {of(ca, web, now.Add(-time.Minute)), 0o600},
		"another service":       {of(ca, store, now.Add(time.Hour)), 0o600},
		"another control plane": {of(other, web, now.Add(time.Hour)), 0o600},
		"readable by others":    {good, 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := newControl(t, ca)
			c.serve(l)
			dir := t.TempDir()
			path := filepath.Join(dir, cacheName)
			if err := os.WriteFile(path, tc.text, tc.mode); err != nil {
				t.Fatal(err)
			}
			log, logs := logged()
			id := newIdentity(t, Config{
				Control: []string{l.Addr().String()}, Service: web, CacheDir: dir, Log: log,
				TokenFile: tokenFile(t, ca.token(web, now.Add(time.Hour))),
			})
			if err := id.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.joins != 1 || logs.FilterMessage("cached certificate ignored").Len() != 1 {
				t.Errorf("%d joins; log %v", c.joins, logs.All())
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Error("not replaced:", info.Mode(), err)
			}
		})
	}
}

func TestACacheThatCannotBeWrittenCostsALineInTheLog(t *testing.T) {
	ca := newAuthority(t)
	l := listen(t)
	newControl(t, ca).serve(l)
	file := tokenFile(t, ca.token(web, time.Now().Add(time.Hour)))
	log, logs := logged()
	id := newIdentity(t, Config{
		Control: []string{l.Addr().String()}, Service: web, TokenFile: file, Log: log,
		CacheDir: filepath.Join(file, "below-a-file"),
	})
	if err := id.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if logs.FilterMessage("certificate is not kept for a restart").Len() != 1 {
		t.Error(logs.All())
	}
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

// FuzzParseToken asserts that what is accepted names a valid service and does
// not change by surrounding space.
func FuzzParseToken(f *testing.F) {
	ca := newAuthority(f)
	f.Add(ca.token(web, time.Unix(1, 0)))
	f.Add("weir1.e30.x")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseToken(text)
		if err != nil {
			if len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Error("the error tells the token")
			}
			return
		}
		if got.service.Validate() != nil || got.domain.IsZero() {
			t.Errorf("%+v", got)
		}
		if again, err := parseToken(" " + text + "\n"); err != nil || again != got {
			t.Errorf("%+v, %v", again, err)
		}
	})
}

// FuzzParseCache asserts that what is accepted can be written and read again.
func FuzzParseCache(f *testing.F) {
	ca := newAuthority(f)
	good, err := formatCache(mustHeld(f, ca, web, time.Now(), time.Now().Add(time.Hour)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := parseCache(text)
		if err != nil {
			return
		}
		out, err := formatCache(h)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseCache(out)
		if err != nil || again.trust.id != h.trust.id || !bytes.Equal(again.chain[0].Raw, h.chain[0].Raw) {
			t.Fatal("not the same after writing", err)
		}
	})
}
