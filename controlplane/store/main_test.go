package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/weir-mesh/weir/policy"
)

// cluster is an etcd that all tests of the binary share, each under its own
// prefix: one start instead of one per test.
var cluster string

// childEnv makes the test binary the process that is killed.
const childEnv = "WEIR_STORE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	code, err := withCluster(m.Run)
	if err == nil && code == 0 {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func withCluster(run func() int) (code int, err error) {
	dir, err := os.MkdirTemp("", "weir-store")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "shared", dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.UnsafeNoFsync = true // these tests are not about crashes
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return 1, err
	}
	defer e.Close()
	<-e.Server.ReadyNotify()
	cluster = "http://" + e.Clients[0].Addr().String()
	return run(), nil
}

var prefixes atomic.Int64

// open gives a store on the shared etcd, at an empty prefix, that follows.
func open(t *testing.T, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{
		Endpoints: []string{cluster}, Prefix: fmt.Sprintf("test-%d", prefixes.Add(1)),
		LeaseTTL: 2 * time.Second, Log: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)),
	}
	for _, f := range change {
		f(&cfg)
	}
	return run(t, cfg)
}

// run opens a store and follows it until the test ends.
func run(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func endpoint(service, id string) policy.Endpoint {
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = id, service, "shop", "10.0.0.5", 8001
	return e
}

func shop(service string) policy.ServiceName {
	return policy.ServiceName{Namespace: "shop", Name: service}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for changes until the state is as wanted; the test's deadline
// ends it.
func until(t *testing.T, s *Store, what string, ok func(*State) bool) *State {
	t.Helper()
	w := s.Watch()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		c, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("waiting until %s: %v", what, err)
		}
		if ok(c.State) {
			return c.State
		}
	}
}

// child registers endpoints until it is killed and says which were
// acknowledged.
func child(dir string) {
	s, err := Open(context.Background(), Config{DataDir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go s.Run(context.Background())
	out := bufio.NewWriter(os.Stdout)
	for i := 0; ; i++ {
		id := fmt.Sprintf("e%d", i)
		if err := s.PutEndpoint(context.Background(), endpoint(fmt.Sprintf("svc%d", i%7), id)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(out, id)
		out.Flush()
	}
}

func dataDir(t *testing.T) string { return filepath.Join(t.TempDir(), "data") }
