package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func meshFile(digest, settings string) File {
	return File{Name: "mesh.yml", Digest: digest, By: "here", AppliedAt: 1, Settings: json.RawMessage(settings)}
}

// shown is a service's endpoints as "id status".
func shown(s *Store, name policy.ServiceName) string {
	var out []string
	for _, e := range s.Endpoints(name) {
		out = append(out, e.ID+" "+e.Status)
	}
	return strings.Join(out, ", ")
}

func TestWhatAFileHasNoMoreGoesAway(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.PutEndpoint(ctx, endpoint("users", "by-hand")))
	must(t, s.UpdateSettings(ctx, []byte(`{"egress": "deny", "load_balancing": {"strategy": "random"}}`)))

	must(t, s.ApplyFile(ctx, meshFile("1", `{"load_balancing":{"strategy":"weighted"}}`), []policy.Endpoint{endpoint("users", "a"), endpoint("users", "b"), endpoint("pay", "c")}))
	if got := shown(s, shop("users")); got != "a healthy, b healthy, by-hand healthy" {
		t.Errorf("users: %s", got)
	}
	st := s.State()
	if st.Settings.LoadBalancing.Strategy != "weighted" || st.Settings.Egress != "deny" || st.File.Digest != "1" || st.Services.Get(shop("pay")).VirtualIndex == 0 {
		t.Errorf("%+v", st.Settings)
	}

	must(t, s.SetStatus(ctx, "shop", "users", "a", policy.Unhealthy))
	heavier := endpoint("users", "a")
	heavier.Weight = 7
	must(t, s.ApplyFile(ctx, meshFile("2", `{}`), []policy.Endpoint{heavier}))
	if got := shown(s, shop("users")); got != "a unhealthy, by-hand healthy" {
		t.Errorf("users: %s", got)
	}
	st = s.State()
	if st.Settings.LoadBalancing.Strategy != "random" || st.Services.Get(shop("pay")) != nil {
		t.Errorf("what the file had set is still there: %+v, %+v", st.Settings.LoadBalancing, st.Services.Get(shop("pay")))
	}
	if e, _ := st.endpoint(shop("users"), "a"); !e.File || e.Weight != 7 {
		t.Errorf("%+v", e)
	}
}

func TestApplyingAFileAgainWritesNothing(t *testing.T) {
	s := open(t)
	e := []policy.Endpoint{endpoint("users", "a")}
	must(t, s.ApplyFile(t.Context(), meshFile("1", `{"egress":"deny"}`), e))
	must(t, s.SetStatus(t.Context(), "shop", "users", "a", policy.Unhealthy))
	before := s.State().Revision
	again := meshFile("1", `{"egress":"deny"}`)
	again.AppliedAt, again.By = 99, "elsewhere"
	must(t, s.ApplyFile(t.Context(), again, e))
	if after := s.State().Revision; after != before {
		t.Errorf("revision %d became %d", before, after)
	}
}

func TestWhatTheFileKeepsIsChangedInTheFile(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.ApplyFile(ctx, meshFile("1", `{"resilience":{"timeout":{"default":5}},"services":{"shop/users":{"timeout":1}}}`), []policy.Endpoint{endpoint("users", "a")}))
	for what, err := range map[string]error{
		"register":  s.PutEndpoint(ctx, endpoint("users", "a")),
		"remove":    s.DeleteEndpoint(ctx, "shop", "users", "a"),
		"shortcut":  s.UpdateSettings(ctx, []byte(`{"global_timeout": 9}`)),
		"a service": s.UpdateSettings(ctx, []byte(`{"services": {"users.shop": {"timeout": 2}}}`)),
	} {
		if !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), "mesh.yml; change it there") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, s.UpdateSettings(ctx, []byte(`{"global_timeout": 5.0, "default_retry_attempts": 2}`)))
	must(t, s.PutEndpoint(ctx, endpoint("users", "b")))
	if set := s.State().Settings; set.Resilience.Timeout.Default != 5 || set.Resilience.Retry.MaxAttempts != 2 {
		t.Errorf("%+v", set.Resilience)
	}
}

func TestSettingsThatDoNotGoTogetherAreRefusedFromEitherSide(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	var p policy.Problems
	// Enabled by the one, and half of what that needs taken away by the other.
	must(t, s.UpdateSettings(ctx, []byte(`{"security": {"ssl": {"cert_file": "a", "key_file": "b"}}}`)))
	must(t, s.ApplyFile(ctx, meshFile("1", `{"security":{"ssl":{"enabled":true}}}`), nil))
	if err := s.UpdateSettings(ctx, []byte(`{"security": {"ssl": {"cert_file": ""}}}`)); !errors.As(err, &p) {
		t.Errorf("the API's patch: %v", err)
	}
	must(t, s.ApplyFile(ctx, meshFile("2", `{}`), nil))
	must(t, s.UpdateSettings(ctx, []byte(`{"security": {"ssl": {"cert_file": ""}}}`)))
	if err := s.ApplyFile(ctx, meshFile("3", `{"security":{"ssl":{"enabled":true}}}`), []policy.Endpoint{endpoint("users", "a")}); !errors.As(err, &p) {
		t.Errorf("the file's: %v", err)
	}
	if got := shown(s, shop("users")); got != "" || s.State().File.Digest != "2" {
		t.Errorf("of a refused file there is %q", got)
	}
}

func TestAFileOfManyEndpointsIsApplied(t *testing.T) {
	s := open(t)
	var many []policy.Endpoint
	for i := range 300 {
		many = append(many, endpoint(fmt.Sprint("svc", i%3), fmt.Sprint("e", i)))
	}
	must(t, s.ApplyFile(t.Context(), meshFile("1", `{"egress":"deny"}`), many))
	total := 0
	for i := range 3 {
		total += len(s.Endpoints(shop(fmt.Sprint("svc", i))))
	}
	if total != 300 || s.State().Settings.Egress != "deny" {
		t.Errorf("%d endpoints", total)
	}
	must(t, s.ApplyFile(t.Context(), meshFile("2", `{}`), many[:1]))
	if n := s.State().Services.Len(); n != 1 {
		t.Errorf("%d services are left", n)
	}
}

func TestWhatWasReleasedStaysAndCanBeChanged(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.ReleaseFile(ctx))
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny"}`), []policy.Endpoint{endpoint("users", "a")}))
	must(t, s.ReleaseFile(ctx))
	if st := s.State(); st.File != nil || st.Settings.Egress != "deny" || shown(s, shop("users")) != "a healthy" {
		t.Errorf("%+v, %s", st.File, shown(s, shop("users")))
	}
	must(t, s.UpdateSettings(ctx, []byte(`{"egress": "allow"}`)))
	must(t, s.DeleteEndpoint(ctx, "shop", "users", "a"))
}

// Two control planes that apply different files at the same time: one of them is
// in force whole, whichever was last.
func TestOfTwoFilesAtOnceOneIsWhole(t *testing.T) {
	one := open(t)
	two := run(t, one.cfg)
	files := []struct {
		s *Store
		f File
		e []policy.Endpoint
	}{
		{one, meshFile("1", `{"egress":"deny"}`), []policy.Endpoint{endpoint("users", "a1"), endpoint("users", "a2")}},
		{two, meshFile("2", `{"egress":"allow"}`), []policy.Endpoint{endpoint("users", "b1"), endpoint("users", "b2")}},
	}
	ended := make(chan error)
	for _, x := range files {
		go func() {
			var err error
			for range 10 {
				err = errors.Join(err, x.s.ApplyFile(t.Context(), x.f, x.e))
			}
			ended <- err
		}()
	}
	must(t, errors.Join(<-ended, <-ended))
	want := map[string]string{"1": "a1 healthy, a2 healthy", "2": "b1 healthy, b2 healthy"}
	for _, s := range []*Store{one, two} {
		until(t, s, "one of the files is in force", func(st *State) bool {
			return st.File != nil && shown(s, shop("users")) == want[st.File.Digest]
		})
	}
}
