package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAFullDiskRefusesWritesAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=96m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("story", func(t *testing.T) {
		s, ctx := run(t, Config{DataDir: filepath.Join(dir, "data")}), t.Context()
		must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
		filler, err := os.Create(filepath.Join(dir, "filler"))
		must(t, err)
		for block := make([]byte, 1<<20); err == nil; {
			_, err = filler.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		must(t, filler.Close())
		_, attachErr := s.Attach(ctx, Proxy{ID: "p", Service: shop("cart")}, nil)
		_, secretErr := s.GetOrCreate(ctx, "x", func() ([]byte, error) { return []byte("x"), nil })
		for _, err := range []error{s.PutEndpoint(ctx, endpoint("cart", "b")), s.UpdateSettings(ctx, []byte(`{"egress":"deny"}`)), attachErr, secretErr} {
			if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), dir) {
				t.Errorf("on a full disk the error is %v", err)
			}
		}
		if n := len(s.Endpoints(shop("cart"))); n != 1 {
			t.Errorf("%d endpoints are known", n)
		}
		must(t, os.Remove(filler.Name()))
		must(t, s.PutEndpoint(ctx, endpoint("cart", "b")))
	})
}

func TestAnEtcdThatGivesUpEndsRunWithItsReason(t *testing.T) {
	s, err := Open(t.Context(), Config{DataDir: dataDir(t)})
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	must(t, s.PutEndpoint(t.Context(), endpoint("cart", "a")))
	gave := make(chan struct{})
	go func() { // as etcd does when its log cannot be written
		defer close(gave)
		lg := s.server.etcd.GetLogger()
		lg.Fatal("failed to save Raft hard state and entries")
		t.Error("the goroutine went on")
	}()
	<-gave
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "failed to save") {
		t.Errorf("Run gives %v", err)
	}
	if n := len(s.Endpoints(shop("cart"))); n != 1 {
		t.Errorf("%d endpoints are known", n)
	}
	if err := s.PutEndpoint(t.Context(), endpoint("cart", "b")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a write after that gives %v", err)
	}
	must(t, s.Close())
	s.server.etcd.Close() // this one is not really broken
}

func TestAQuotaThatIsReachedIsClearedOfThePast(t *testing.T) {
	s, ctx := run(t, Config{DataDir: dataDir(t), quota: 4 << 20}), t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("cart", "stays")))
	// The past of one key: much more than the quota.
	text := strings.Repeat("x", 100<<10)
	for range 100 {
		must(t, s.write(ctx, "test", func(ctx context.Context) error {
			_, err := s.client.Put(ctx, s.cfg.Prefix+"secrets/past", text)
			return explain(err)
		}))
	}
	must(t, s.PutEndpoint(ctx, endpoint("cart", "b")))
	until(t, s, "both are known", func(st *State) bool { return len(st.Services.Get(shop("cart")).Endpoints) == 2 })
	// What is there now is too much by itself: refused, and the rest stays.
	var err error
	for i := 0; err == nil && i < 100; i++ {
		err = s.write(ctx, "test", func(ctx context.Context) error {
			_, err := s.client.Put(ctx, fmt.Sprint(s.cfg.Prefix, "secrets/", i), text)
			return explain(err)
		})
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "quota of 4 MiB") {
		t.Errorf("the error is %v", err)
	}
	if n := len(s.Endpoints(shop("cart"))); n != 2 {
		t.Errorf("%d endpoints are known", n)
	}
}
