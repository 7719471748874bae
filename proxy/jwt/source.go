package jwt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSet bounds what is read of a key set.
	maxSet = 1 << 20
	// fetchLimit bounds one fetch.
	fetchLimit = 10 * time.Second
	// fileEvery is how often files are looked at, and urlEvery how often a URL is
	// fetched that says nothing else.
	fileEvery = 10 * time.Second
	urlEvery  = 5 * time.Minute
	// leastPause is the time between two fetches that tokens with unknown keys ask
	// for, which anybody can send, and after one that failed.
	leastPause = 5 * time.Second
)

// Source is where keys come from: one of its fields, and Every. It is comparable.
type Source struct {
	Secret     string // itself
	SecretFile string
	SecretEnv  string // name of a variable in the environment
	KeysFile   string // a JWK set
	KeysURL    string // of one, by http or https
	Every      time.Duration
}

// String names the source for logs, without a secret.
func (s Source) String() string {
	switch {
	case s.SecretFile != "":
		return "file " + s.SecretFile
	case s.SecretEnv != "":
		return "environment variable " + s.SecretEnv
	case s.KeysFile != "":
		return "file " + s.KeysFile
	case s.KeysURL != "":
		return s.KeysURL
	}
	return "settings"
}

// isPublic tells whether it gives public keys, and no secret.
func (s Source) isPublic() bool { return s.KeysFile != "" || s.KeysURL != "" }

// fixed tells whether the source never changes.
func (s Source) fixed() bool { return s.SecretFile == "" && s.SecretEnv == "" && !s.isPublic() }

// every is the time between two fetches.
func (s Source) every() time.Duration {
	switch {
	case s.KeysURL == "":
		return fileEvery
	case s.Every > 0:
		return s.Every
	}
	return urlEvery
}

// fetch reads the keys.
func (s Source) fetch(ctx context.Context) (text []byte, err error) {
	switch {
	case s.SecretEnv != "":
		value, ok := os.LookupEnv(s.SecretEnv)
		if !ok {
			return nil, fmt.Errorf("%s is not set in the proxy's environment", s.SecretEnv)
		}
		return []byte(value), nil
	case s.KeysURL != "":
		return fetchURL(ctx, s.KeysURL)
	}
	name := s.SecretFile
	if name == "" {
		name = s.KeysFile
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f)
}

func (s Source) parse(text []byte) (*keySet, error) {
	if s.isPublic() {
		return parseKeys(text)
	}
	return parseSecret(text)
}

// client follows no redirect: where keys come from is what was configured.
var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: fetchLimit, MaxResponseHeaderBytes: 64 << 10},
}

func fetchURL(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return readAll(resp.Body)
}

func readAll(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSet+1))
	if err == nil && len(text) > maxSet {
		err = fmt.Errorf("more than %d bytes", maxSet)
	}
	return text, err
}

// ring holds an issuer's keys of now. While they cannot be fetched, those that were
// known stay.
type ring struct {
	source Source
	told   func(Source, error)
	keys   atomic.Pointer[keySet]
	ask    chan struct{} // of one place: somebody wants newer keys

	mu    sync.Mutex    // guards what follows
	next  chan struct{} // closed at the end of the next fetch
	ended time.Time     // of the last
}

func newRing(s Source, told func(Source, error)) *ring {
	r := &ring{source: s, told: told, ask: make(chan struct{}, 1), next: make(chan struct{})}
	if s.fixed() {
		// As it is: a secret in the settings may end as it likes.
		r.keys.Store(&keySet{secret: []byte(s.Secret)})
	}
	return r
}

// run fetches keys now, on a timer and when asked, until ctx ends.
func (r *ring) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.fetch(ctx)
		pause := r.source.every()
		if err != nil {
			pause = min(pause, leastPause)
		}
		timer := time.NewTimer(pause)
		least := time.NewTimer(min(leastPause, pause))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-least.C: // from now on others may ask
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-r.ask:
			}
		}
		timer.Stop()
		least.Stop()
	}
}

// fetch puts what it finds in force, and wakes those who wait.
func (r *ring) fetch(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	text, err := r.source.fetch(limit)
	if err == nil {
		err = r.take(text)
	}
	if ctx.Err() == nil && r.told != nil {
		r.told(r.source, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.next)
	r.next, r.ended = make(chan struct{}), time.Now()
	return err
}

// take replaces the keys, unless they are the same: tokens that were seen are
// checked again by new ones.
func (r *ring) take(text []byte) error {
	if have := r.keys.Load(); have != nil && bytes.Equal(have.text, text) {
		return nil
	}
	set, err := r.source.parse(text)
	if err != nil {
		return err
	}
	r.keys.Store(set)
	return nil
}

// Run keeps the keys of all issuers until ctx ends.
func (v *Verifier) Run(ctx context.Context) {
	var wg sync.WaitGroup
	started := map[*ring]bool{}
	for _, r := range v.rings {
		if !r.source.fixed() && !started[r] {
			started[r] = true
			wg.Go(func() { r.run(ctx) })
		}
	}
	wg.Wait()
	<-ctx.Done()
}

// Fetches tells whether there is anything for Run to do.
func (v *Verifier) Fetches() bool {
	for _, r := range v.rings {
		if !r.source.fixed() {
			return true
		}
	}
	return false
}

// Refresh asks for newer keys after an error of Verify, waits for them until ctx
// ends, and tells whether to try again. Keys that were fetched a moment ago are as
// new as they get.
func (v *Verifier) Refresh(ctx context.Context, now time.Time, err error) bool {
	var unknown *UnknownKeyError
	if !errors.As(err, &unknown) || unknown.ring.source.fixed() {
		return false
	}
	r := unknown.ring
	r.mu.Lock()
	next, recent := r.next, now.Sub(r.ended) < leastPause
	r.mu.Unlock()
	if recent {
		return false
	}
	select {
	case r.ask <- struct{}{}:
	default: // it is asked for already
	}
	select {
	case <-next:
		return true
	case <-ctx.Done():
		return false
	}
}
