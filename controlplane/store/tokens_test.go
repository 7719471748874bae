package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

func joinToken(id string, uses int) policy.JoinToken {
	now := time.Now().Truncate(time.Second)
	return policy.JoinToken{ID: id, Service: shop("cart"), Created: now, Expires: now.Add(time.Hour), Uses: uses}
}

func TestATokenIsUsedAsOftenAsItSays(t *testing.T) {
	s := open(t)
	want := joinToken("two", 2)
	must(t, s.AddToken(t.Context(), want))
	use := func(by string, joined bool, used int) {
		t.Helper()
		got, ok, err := s.UseToken(t.Context(), "two", by)
		if err != nil || ok != joined || got.Used != used || got.Service != want.Service || !got.Expires.Equal(want.Expires) {
			t.Errorf("%s: %v %+v, %v; want %v after %d uses", by, ok, got, err, joined, used)
		}
	}
	use("a", true, 1)
	use("a", true, 1) // its first answer was lost
	use("b", true, 2)
	use("c", false, 2)
	use("b", true, 2)
	must(t, s.RevokeToken(t.Context(), "two"))
	use("a", false, 2)
	list, err := s.Tokens(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "two" || list[0].Used != 2 || list[0].Revoked.IsZero() {
		t.Errorf("the list is %+v, %v", list, err)
	}
	if err := s.AddToken(t.Context(), want); !errors.Is(err, policy.ErrExists) {
		t.Errorf("a second of its name: %v", err)
	}
	for _, id := range []string{"none", "", "a/b"} {
		_, joined, err := s.UseToken(t.Context(), id, "a")
		if !errors.Is(err, ErrNotFound) || joined {
			t.Errorf("%q, which there is not: %v %v", id, joined, err)
		}
		if err := s.RevokeToken(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("revoke %q, which there is not: %v", id, err)
		}
	}
}

func TestATokenForAnyNumberIsNotCounted(t *testing.T) {
	s := open(t)
	must(t, s.AddToken(t.Context(), joinToken("any", 0)))
	before := s.State().Revision
	for i := range 5 {
		if got, joined, err := s.UseToken(t.Context(), "any", fmt.Sprint(i)); err != nil || !joined || got.Used != 0 {
			t.Errorf("%+v %v %v", got, joined, err)
		}
	}
	if s.State().Revision != before {
		t.Error("something was written")
	}
	must(t, s.RevokeToken(t.Context(), "any"))
	if _, joined, err := s.UseToken(t.Context(), "any", "a"); joined || err != nil {
		t.Errorf("revoked: %v %v", joined, err)
	}
}

// Three control planes on one etcd are asked at once by more than may join.
func TestUsesAreCountedOverAllControlPlanes(t *testing.T) {
	prefix := fmt.Sprintf("test-%d", prefixes.Add(1))
	var all []*Store
	for range 3 {
		all = append(all, open(t, func(c *Config) { c.Prefix = prefix }))
	}
	must(t, all[0].AddToken(t.Context(), joinToken("seven", 7)))
	var wg sync.WaitGroup
	var joined, refused atomic.Int32
	for i := range 30 {
		wg.Go(func() {
			_, ok, err := all[i%3].UseToken(t.Context(), "seven", fmt.Sprint("proxy-", i))
			switch {
			case err != nil:
				t.Error(err)
			case ok:
				joined.Add(1)
			default:
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if joined.Load() != 7 || refused.Load() != 23 {
		t.Errorf("%d joined, %d were refused; want 7 and 23", joined.Load(), refused.Load())
	}
}

func TestUsesAreKnownAfterARestart(t *testing.T) {
	cfg := Config{DataDir: dataDir(t)}
	s, err := Open(t.Context(), cfg)
	must(t, err)
	must(t, s.AddToken(t.Context(), joinToken("one", 1)))
	_, joined, err := s.UseToken(t.Context(), "one", "a")
	if err != nil || !joined {
		t.Fatal(joined, err)
	}
	must(t, s.Close())
	if s, err = Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, s.Close()) }()
	if _, joined, err := s.UseToken(t.Context(), "one", "b"); joined || err != nil {
		t.Errorf("after a restart another joined: %v %v", joined, err)
	}
	if _, joined, err := s.UseToken(t.Context(), "one", "a"); !joined || err != nil {
		t.Errorf("after a restart the first is not known: %v %v", joined, err)
	}
}
