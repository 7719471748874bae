package identity

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

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
	if swapped.cert.PrivateKey, err = makeKey(); err != nil {
		t.Fatal(err)
	}
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

// Proxies made keys on P-256 before they made Ed25519 keys.
func TestACacheWithAKeyOnP256IsTaken(t *testing.T) {
	ca := newAuthority(t)
	now := time.Now()
	key := newKey(t)
	h, err := newHeld(encode(ca.leaf(t, web, &key.PublicKey, now.Add(-time.Minute), now.Add(time.Hour))), ca.pem(), key, mustDomain(domain))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Control: []string{"unused"}, Service: web, CacheDir: t.TempDir()}
	if err := writeCache(cfg.CacheDir, h); err != nil {
		t.Fatal(err)
	}
	id := newIdentity(t, cfg)
	if err := id.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustShake(t, workload(t, ca, store).ServerTLS(), id.ClientTLS(store))
	mustShake(t, id.ServerTLS(), workload(t, ca, store).ClientTLS(web))
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
