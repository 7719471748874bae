package jwt

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// keyServer answers with what it is given, and counts.
type keyServer struct {
	*httptest.Server
	text  atomic.Pointer[[]byte] // nil answers 503
	asked atomic.Int64
}

func newKeyServer(t *testing.T, text []byte) *keyServer {
	s := &keyServer{}
	s.text.Store(&text)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked.Add(1)
		if text := s.text.Load(); text != nil {
			_, _ = w.Write(*text)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(s.Close)
	return s
}

// believe gives a verifier by the server's keys that runs until the test ends, and
// the errors of its fetches.
func (s *keyServer) believe(t *testing.T, every time.Duration) (*Verifier, <-chan error) {
	fetched := make(chan error, 1000)
	v := NewVerifier(Config{
		Issuers: []Issuer{{Name: issuerName, Source: Source{KeysURL: s.URL, Every: every}}},
		Hooks:   Hooks{Fetched: func(_ Source, err error) { fetched <- err }},
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); v.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return v, fetched
}

func awaitFetch(t *testing.T, fetched <-chan error, well bool) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case err := <-fetched:
			if (err == nil) == well {
				return
			}
		case <-timeout:
			t.Fatal("no such fetch")
		}
	}
}

func TestKeysTurnWithoutARestart(t *testing.T) {
	old, now := newLogin(t), newLogin(t)
	s := newKeyServer(t, old.set())
	v, fetched := s.believe(t, 20*time.Millisecond)
	awaitFetch(t, fetched, true)
	before := "Bearer " + old.sign(`{"alg":"EdDSA","kid":"ed"}`, payload(""), "ed")
	after := "Bearer " + now.sign(`{"alg":"EdDSA","kid":"ed"}`, payload(""), "ed")
	if _, err := v.Verify(before, noon); err != nil {
		t.Fatal(err)
	}
	text := now.set()
	s.text.Store(&text)
	awaitFetch(t, fetched, true)
	awaitFetch(t, fetched, true) // this one began after the change
	if _, err := v.Verify(after, noon); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(before, noon); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token that was seen outlived its key: %v", err)
	}
}

func TestWhileKeysCannotBeFetchedTheOldOnesHold(t *testing.T) {
	l := newLogin(t)
	s := newKeyServer(t, l.set())
	v, fetched := s.believe(t, 20*time.Millisecond)
	awaitFetch(t, fetched, true)
	token := "Bearer " + l.sign(`{"alg":"ES256","kid":"ec"}`, payload(""), "ec")
	s.text.Store(nil)
	awaitFetch(t, fetched, false)
	if _, err := v.Verify(token, noon); err != nil {
		t.Error(err)
	}
	garbage := []byte("<html>maintenance</html>")
	s.text.Store(&garbage)
	awaitFetch(t, fetched, false)
	awaitFetch(t, fetched, false)
	if _, err := v.Verify(token, noon); err != nil {
		t.Errorf("what is no key set replaced one: %v", err)
	}
}

func TestAnUnknownKeyIsFetchedOnceAndWaitedFor(t *testing.T) {
	l := newLogin(t)
	s := newKeyServer(t, l.set())
	v, fetched := s.believe(t, time.Hour)
	token := "Bearer " + l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(""), "rsa")
	_, err := v.Verify(token, noon) // perhaps before the first fetch
	if err != nil {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		// Whoever comes while the first fetch is under way waits for it; after it
		// there is nothing newer.
		if again := v.Refresh(ctx, time.Now(), err); !again && v.rings[0].keys.Load() == nil {
			t.Fatal("did not wait for the first keys")
		}
	} else {
		awaitFetch(t, fetched, true)
	}
	if _, err := v.Verify(token, noon); err != nil {
		t.Fatal(err)
	}
	stranger := "Bearer " + l.sign(`{"alg":"RS256","kid":"other"}`, payload(""), "rsa")
	_, err = v.Verify(stranger, noon)
	var unknown *UnknownKeyError
	if !errors.As(err, &unknown) || !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	for range 1000 { // anybody can send these
		if v.Refresh(t.Context(), time.Now(), err) {
			t.Fatal("keys fetched a moment ago were fetched again")
		}
	}
	if n := s.asked.Load(); n > 2 {
		t.Errorf("%d fetches for 1000 tokens with unknown keys", n)
	}
}

func TestAnUnknownKeyIsAskedForAfterAWhile(t *testing.T) {
	old, now := newLogin(t), newLogin(t)
	r := newRing(Source{KeysURL: newKeyServer(t, now.set()).URL}, nil)
	if err := r.take(old.set()); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(Config{Issuers: []Issuer{{Name: issuerName, Source: r.source}}}, nil)
	v.rings[0] = r
	token := "Bearer " + now.sign(`{"alg":"RS256","kid":"rsa"}`, payload(""), "rsa")
	if _, err := v.Verify(token, noon); !errors.Is(err, ErrInvalid) {
		t.Fatal("the key is not known yet")
	}
	unknown := "Bearer " + now.sign(`{"alg":"RS256","kid":"none"}`, payload(""), "rsa")
	_, err := v.Verify(unknown, noon)
	done := make(chan bool)
	go func() { done <- v.Refresh(t.Context(), time.Now(), err) }()
	<-r.ask // the request of it
	if err := r.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !<-done {
		t.Error("whoever waited was not told")
	}
	if _, err := v.Verify(token, noon); err != nil {
		t.Error(err)
	}
}

func TestSecretsComeFromAFileOrTheEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, append(secret, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WEIR_TEST_SECRET", string(secret))
	signed := "Bearer " + token(hs256, payload(""), secret)
	for _, s := range []Source{{SecretFile: file}, {SecretEnv: "WEIR_TEST_SECRET"}} {
		v := NewVerifier(Config{Issuers: []Issuer{{Name: issuerName, Source: s}}}, nil)
		var unknown *UnknownKeyError
		if _, err := v.Verify(signed, noon); !errors.As(err, &unknown) {
			t.Errorf("%s: before it was read: %v", s, err)
		}
		if err := v.rings[0].fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(signed, noon); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if strings.Contains(s.String(), string(secret)) {
			t.Errorf("%s tells the secret", s)
		}
	}
	for name, s := range map[string]Source{
		"no file": {SecretFile: file + "x"}, "no variable": {SecretEnv: "WEIR_TEST_NONE"}, "a directory": {KeysFile: filepath.Dir(file)},
	} {
		if err := newRing(s, nil).fetch(t.Context()); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
	t.Setenv("WEIR_TEST_SECRET", "\n")
	if err := newRing(Source{SecretEnv: "WEIR_TEST_SECRET"}, nil).fetch(t.Context()); err == nil {
		t.Error("an empty secret was taken")
	}
}

func TestAKeySetIsNotFetchedFromElsewhere(t *testing.T) {
	l := newLogin(t)
	target := newKeyServer(t, l.set())
	redirect := httptest.NewServer(http.RedirectHandler(target.URL, http.StatusFound))
	defer redirect.Close()
	if err := newRing(Source{KeysURL: redirect.URL}, nil).fetch(t.Context()); err == nil || target.asked.Load() != 0 {
		t.Errorf("a redirect was followed: %v", err)
	}
	large := newKeyServer(t, []byte(strings.Repeat(" ", maxSet+1)))
	if err := newRing(Source{KeysURL: large.URL}, nil).fetch(t.Context()); err == nil {
		t.Error("a set of any length was read")
	}
}

func TestANewVerifierKeepsTheKeysThatAreKnown(t *testing.T) {
	l := newLogin(t)
	old := l.verifier(t)
	v := NewVerifier(Config{Issuers: []Issuer{{Name: issuerName, Source: old.cfg.Issuers[0].Source}}}, old)
	if _, err := v.Verify("Bearer "+l.sign(`{"alg":"EdDSA"}`, payload(""), "ed"), noon); err != nil {
		t.Error(err)
	}
}

func TestATokenThatWasSeenCostsNoAllocationAndStillExpires(t *testing.T) {
	l := newLogin(t)
	v := l.verifier(t)
	header := "Bearer " + l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(""), "rsa")
	verify := func() {
		if _, err := v.Verify(header, noon); err != nil {
			t.Fatal(err)
		}
	}
	verify()
	if n := testing.AllocsPerRun(1000, verify); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if _, err := v.Verify(header, noon.Add(time.Hour+Leeway+time.Second)); !errors.Is(err, ErrInvalid) {
		t.Error("a token that was seen does not expire")
	}
	early := "Bearer " + l.sign(`{"alg":"RS256","kid":"rsa"}`, payload(`,"nbf":`+nbf(time.Minute)), "rsa")
	for range 2 {
		if _, err := v.Verify(early, noon); !errors.Is(err, ErrInvalid) {
			t.Error("a token that is to come holds")
		}
	}
	if _, err := v.Verify(early, noon.Add(time.Minute)); err != nil {
		t.Error(err)
	}
}
