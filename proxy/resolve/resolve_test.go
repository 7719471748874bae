package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a name server whose answers a test chooses.
type server struct {
	mu      sync.Mutex // guards what follows
	answers map[string][]netip.Addr
	asked   []string
	gate    chan struct{} // answers wait for it; nil is open
	changed []string
}

func (s *server) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	s.asked = append(s.asked, host)
	gate, addrs := s.gate, s.answers[host]
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if addrs == nil {
		return nil, errors.New("no such host")
	}
	return addrs, nil
}

func (s *server) set(host string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.answers, host)
	for _, a := range addrs {
		s.answers[host] = append(s.answers[host], netip.MustParseAddr(a))
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// seen gives the names that led elsewhere, and those asked for since it was called
// last.
func (s *server) seen() (changed, asked []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, s.asked = s.asked, nil
	return slices.Clone(s.changed), asked
}

func begin(t *testing.T) (*server, *Resolver) {
	t.Helper()
	s := &server{answers: map[string][]netip.Addr{}}
	r, err := New(Config{Lookup: s.lookup, Changed: func(host string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed = append(s.changed, host)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func TestANameIsAskedForOnceAndThenKnown(t *testing.T) {
	s, r := begin(t)
	s.set("a.example.com", "192.0.2.9", "192.0.2.1", "192.0.2.9", "2001:db8::1", "0.0.0.0")
	if got := r.Addrs("a.example.com"); got != nil {
		t.Errorf("%v is known before anybody asked", got)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got, err := r.Want(t.Context(), "a.example.com")
			if err != nil || fmt.Sprint(got) != "[192.0.2.1 192.0.2.9]" { // IPv4 where there is any, in order
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if s.count() != 1 || len(r.Addrs("a.example.com")) != 2 {
		t.Errorf("asked %d times", s.count())
	}
	s.set("b.example.com", "2001:db8::1")
	if got, err := r.Want(t.Context(), "b.example.com"); err != nil || fmt.Sprint(got) != "[2001:db8::1]" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestANameThatLeadsNowhereIsNotAskedForAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := begin(t)
		s.set("odd.example.com", "0.0.0.0")
		for range 10 {
			if _, err := r.Want(t.Context(), "gone.example.com"); err == nil || !strings.Contains(err.Error(), "look up gone.example.com: no such host") {
				t.Fatal(err)
			}
		}
		if _, err := r.Want(t.Context(), "odd.example.com"); err == nil || !strings.Contains(err.Error(), "no address that can be dialled") {
			t.Fatal(err)
		}
		if s.count() != 2 {
			t.Errorf("asked %d times", s.count())
		}
		time.Sleep(failedFor)
		s.set("gone.example.com", "192.0.2.1")
		if got, err := r.Want(t.Context(), "gone.example.com"); err != nil || len(got) != 1 {
			t.Errorf("a second later: %v, %v", got, err)
		}
	})
}

func TestWhoGivesUpDoesNotSpoilItForTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := begin(t)
		s.gate = make(chan struct{})
		s.set("a.example.com", "192.0.2.1")
		impatient, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Want(impatient, "a.example.com"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if got, err := r.Want(t.Context(), "a.example.com"); err != nil || len(got) != 1 {
				t.Errorf("%v, %v", got, err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(s.gate)
		wg.Wait()
	})
}

func TestNamesAreLookedUpAgainAndKeepWhatTheyHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := begin(t)
		s.set("a.example.com", "192.0.2.1")
		s.set("b.example.com", "192.0.2.2")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); r.Run(ctx) }()
		for _, host := range []string{"a.example.com", "b.example.com"} {
			if _, err := r.Want(ctx, host); err != nil {
				t.Fatal(err)
			}
		}
		s.set("a.example.com", "192.0.2.7")
		time.Sleep(defaultEvery + time.Second)
		changed, _ := s.seen()
		if got := r.Addrs("a.example.com"); fmt.Sprint(got) != "[192.0.2.7]" || fmt.Sprint(changed) != "[a.example.com]" {
			t.Errorf("%v, changed %v", got, changed)
		}
		s.set("a.example.com") // the name server does not know it any more
		time.Sleep(10 * defaultEvery)
		changed, _ = s.seen()
		if got, err := r.Want(ctx, "a.example.com"); err != nil || fmt.Sprint(got) != "[192.0.2.7]" || len(changed) != 1 {
			t.Errorf("%v, %v, changed %v", got, err, changed)
		}
		r.Keep(map[string]bool{"b.example.com": true})
		time.Sleep(defaultEvery)
		if _, asked := s.seen(); slices.Contains(asked, "a.example.com") || !slices.Contains(asked, "b.example.com") {
			t.Errorf("asked for %v", asked)
		}
		stop()
		<-ended
	})
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a resolver without a lookup")
	}
}
