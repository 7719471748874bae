package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// etcd runs one for a test and gives its URL.
func etcd(t *testing.T) string {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "shared", t.TempDir()
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.UnsafeNoFsync = true // these tests are not about crashes
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return "http://" + e.Clients[0].Addr().String()
}

// follower is a control plane as far as the mesh file goes.
type follower struct {
	file *configFile
	st   *store.Store
	stop func()
}

func follow(t *testing.T, etcd, text string) *follower {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Endpoints: []string{etcd}, LeaseTTL: 2 * time.Second, Log: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel))})
	if err != nil {
		t.Fatal(err)
	}
	path := ""
	if text != "" {
		path = filepath.Join(t.TempDir(), "mesh.yml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := newConfigFile(path, "here", zaptest.NewLogger(t))
	if err == nil {
		err = c.use(t.Context(), st, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- st.Run(ctx) }()
	go func() { ended <- c.run(ctx) }()
	stopped := false
	f := &follower{file: c, st: st}
	f.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := errors.Join(<-ended, <-ended, st.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(f.stop)
	return f
}

// until waits for changes of the state until it is as wanted.
func (f *follower) until(t *testing.T, what string, ok func(*store.State) bool) {
	t.Helper()
	w := f.st.Watch()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		c, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("waiting until %s: %v", what, err)
		}
		if ok(c.State) {
			return
		}
	}
}

const fileOf = "mesh:\n  egress: %s\n  services: {users: {instances: [{url: 'http://10.0.0.%d:80'}]}}\n"

// Two control planes with different files: the first one's is in force, and stays
// so until that one is gone. Then the other's is, whole.
func TestOfTwoControlPlanesOneAppliesItsFile(t *testing.T) {
	at := etcd(t)
	inForce := func(egress, ip string) func(*store.State) bool {
		return func(st *store.State) bool {
			svc := st.Services.Get(users)
			return st.Settings.Egress == egress && svc != nil && len(svc.Endpoints) == 1 && svc.Endpoints[0].IP == ip
		}
	}
	one := follow(t, at, fmt.Sprintf(fileOf, "deny", 1))
	one.until(t, "the first file is in force", inForce("deny", "10.0.0.1"))
	two := follow(t, at, fmt.Sprintf(fileOf, "allow", 2))
	idle := follow(t, at, "")
	two.until(t, "the second knows it", inForce("deny", "10.0.0.1"))
	if s := two.file.status(); s.State != "waiting" || s.AppliedBy == "" || s.Digest != one.file.status().Digest {
		t.Errorf("the second says %+v", s)
	}
	if s := idle.file.status(); s == nil || s.State != "kept" || s.Path != one.file.path {
		t.Errorf("the one without a file says %+v", s)
	}
	revision := two.st.State().Revision
	if err := one.file.apply(t.Context()); err != nil { // as it does from time to time
		t.Fatal(err)
	}
	if now := two.st.State().Revision; now != revision {
		t.Errorf("to apply a file again wrote something: revision %d became %d", revision, now)
	}
	one.stop()
	two.until(t, "the second file is in force", inForce("allow", "10.0.0.2"))
	if s := two.file.status(); s.State != "applied" || s.Path != two.file.path {
		t.Errorf("the second says %+v", s)
	}
}

// What others took out of the store by other ways comes back.
func TestAFilePutsBackWhatIsMissing(t *testing.T) {
	f := follow(t, etcd(t), fmt.Sprintf(fileOf, "deny", 1))
	there := func(st *store.State) bool { return st.Services.Get(users) != nil && st.File != nil }
	f.until(t, "the file is in force", there)
	if err := f.st.ApplyFile(t.Context(), *f.st.State().File, nil); err != nil {
		t.Fatal(err)
	}
	f.file.wake <- struct{}{} // sooner than by itself
	f.until(t, "the endpoint is back", there)
}

func TestWithoutAFileWhatTheLastOneSetIsLetGo(t *testing.T) {
	dir := t.TempDir()
	st, err := store.Open(t.Context(), store.Config{DataDir: filepath.Join(dir, "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "mesh.yml")
	if err := os.WriteFile(path, fmt.Appendf(nil, fileOf, "deny", 1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, ""} {
		c, err := newConfigFile(path, "here", zaptest.NewLogger(t))
		if err == nil {
			err = c.use(t.Context(), st, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		if s := st.State(); s.Settings.Egress != "deny" || s.Services.Get(users) == nil {
			t.Errorf("with %q: %+v", path, s.Settings)
		}
		if s := c.status(); (s != nil) != (path != "") || s != nil && s.State != "applied" {
			t.Errorf("with %q: %+v", path, s)
		}
	}
	if err := st.DeleteEndpoint(t.Context(), "default", "users", "10.0.0.1:80"); err != nil {
		t.Error(err)
	}
}

func TestAFileThatIsWrongIsNoStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yml")
	if err := os.WriteFile(path, []byte("mesh:\n  egres: deny\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Run(t.Context(), Config{ConfigFile: path, DataDir: t.TempDir(), HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), `mesh.yml:2:3: mesh.egres: unknown setting; did you mean "egress"?`) {
		t.Errorf("%v", err)
	}
}

// An instance of the file whose proxy registers it as well is one endpoint to
// callers, the file's; and an instance's own limit has the mesh's window.
func TestAnInstanceWithItsProxyIsOneEndpoint(t *testing.T) {
	s := newSteps()
	e := func(id, ip string, limit int) policy.Endpoint {
		e := policy.DefaultEndpoint()
		e.ID, e.Namespace, e.ServiceName, e.IP, e.Port, e.RateLimit = id, users.Namespace, users.Name, ip, 80, limit
		return e
	}
	s.st.Settings.Security.RateLimiting.Window = 7
	s.st.Services = store.ServicesOf(&store.Service{Name: users, VirtualIndex: 1, Endpoints: []store.Endpoint{
		{Endpoint: e("10.0.0.1:80", "10.0.0.1", 3), File: true}, {Endpoint: e("10.0.0.2:80", "10.0.0.2", 3), File: true},
		{Endpoint: e("proxys", "10.0.0.1", 0), Leased: true, ProxyID: "p"}, {Endpoint: e("by-hand", "10.0.0.2", 0)},
	}})
	s.apply(store.Change{Settings: true, Services: map[policy.ServiceName]struct{}{users: {}}})
	svc, ok := s.v.Service(users)
	if !ok {
		t.Fatal("no service")
	}
	var got []string
	for _, target := range svc.Endpoints {
		got = append(got, fmt.Sprint(target.ID, " ", target.Limit.Limit, "/", target.Limit.Window))
	}
	if fmt.Sprintf("%q", got) != `["10.0.0.1:80 3/7s" "10.0.0.2:80 3/7s" "by-hand 0/0s"]` {
		t.Errorf("%q", got)
	}
	if name, ok := s.v.Lookup(netip.MustParseAddrPort("10.0.0.1:80").String()); !ok || name != users {
		t.Errorf("%v", name)
	}
}
