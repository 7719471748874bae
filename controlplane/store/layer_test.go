package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func patch(text string) policy.Edit { return policy.Edit{Ref: configRef, Patch: []byte(text)} }

// With a file there are two versions of the settings, its own and the API's: who
// has seen one of them is told when the other has changed.
func TestAChangeOfTheFileIsOneOfTheSettingsVersion(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	seen := edit(t, s, patch(`{"mtls_mode":"permissive"}`)).Revision
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny"}`), nil))
	st := s.State()
	if st.SettingsRevision <= seen || st.SettingsRevision != st.Revision {
		t.Fatalf("version %d after %d", st.SettingsRevision, seen)
	}
	late := patch(`{"global_timeout":9}`)
	late.If.Versions = []int64{seen}
	if _, err := s.Change(ctx, []policy.Edit{late}, false); !errors.Is(err, policy.ErrStale) {
		t.Errorf("over a file that was not seen: %v", err)
	}
	late.If.Versions = []int64{st.SettingsRevision}
	out := edit(t, s, late)
	if now := s.State(); now.SettingsRevision != out.Revision || now.Settings.Egress != "deny" || now.Settings.Resilience.Timeout.Default != 9 {
		t.Errorf("version %d of %d, %+v", now.SettingsRevision, out.Revision, now.Settings)
	}
	// What is told of a change is what is in force.
	if d := out.Differences[0]; d.Before.Settings.Egress != "deny" || d.After.Settings.Egress != "deny" {
		t.Errorf("the change is shown as %+v", d)
	}
}

func TestNoWayInChangesWhatTheFileKeeps(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny","services":{"shop/users":{"timeout":1}}}`), []policy.Endpoint{endpoint("users", "a")}))
	ref := policy.Ref{Kind: policy.KindEndpoint, Namespace: "shop", Service: "users", ID: "a"}
	same := policy.Edit{Ref: ref, To: &policy.Resource{Endpoint: ptr(endpoint("users", "a"))}}
	whole := func(change func(*policy.Settings)) policy.Edit {
		set := s.State().Settings
		change(&set)
		return policy.Edit{Ref: configRef, To: &policy.Resource{Settings: &set}}
	}
	before := s.State().Revision
	for what, edits := range map[string][]policy.Edit{
		"an endpoint registered":         {same},
		"an endpoint changed":            {addEndpoint("users", "a", 9)},
		"an endpoint removed":            {{Ref: ref}},
		"a setting":                      {patch(`{"egress":"allow"}`)},
		"a setting after another":        {patch(`{"mtls_mode":"permissive"}`), patch(`{"egress":"allow"}`)},
		"a service's":                    {patch(`{"services":{"users.shop":{"timeout":2}}}`)},
		"a service's removed":            {patch(`{"services":{"shop/users":null}}`)},
		"all of them, one otherwise":     {whole(func(s *policy.Settings) { s.Egress = "allow" })},
		"all of them, a service's less":  {whole(func(s *policy.Settings) { s.Services = nil })},
		"all of them, a service's none":  {whole(func(s *policy.Settings) { s.Services = map[string]policy.ServiceSettings{} })},
		"all of them reset":              {{Ref: configRef}},
		"a rule with an endpoint":        {addRule("users", "r", 1), addEndpoint("users", "a", 9)},
		"a setting with an endpoint new": {addEndpoint("users", "b", 9), patch(`{"egress":"allow"}`)},
	} {
		for _, dryRun := range []bool{true, false} {
			_, err := s.Change(ctx, edits, dryRun)
			if !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), "is kept by the mesh file mesh.yml; change it there") {
				t.Errorf("%s, dry run %v: %v", what, dryRun, err)
			}
		}
	}
	if after := s.State().Revision; after != before {
		t.Errorf("something was stored: revision %d became %d", before, after)
	}
	// What is so already may be said, as who applies an export does.
	same.Quiet = true
	out := edit(t, s, same, whole(func(*policy.Settings) {}), patch(`{"egress":"deny"}`))
	if out.Revision != 0 {
		t.Errorf("saying what is so was stored: %+v", out)
	}
	edit(t, s, whole(func(s *policy.Settings) { s.MTLSMode = policy.Permissive }))
	if st := s.State(); st.Settings.MTLSMode != policy.Permissive || st.Settings.Egress != "deny" {
		t.Errorf("%+v", st.Settings)
	}
}

func ptr[T any](v T) *T { return &v }

func TestTheHistoryTellsWhatAFileChanged(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	edit(t, s, addEndpoint("users", "by-hand", 1), patch(`{"egress":"allow","mtls_mode":"permissive"}`))
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny"}`), []policy.Endpoint{endpoint("users", "a"), endpoint("users", "by-hand")}))
	must(t, s.ApplyFile(ctx, meshFile("2", `{}`), []policy.Endpoint{endpoint("users", "by-hand")}))
	must(t, s.ApplyFile(ctx, meshFile("3", `{}`), []policy.Endpoint{endpoint("users", "by-hand")})) // another text that says the same
	list, err := s.History(ctx, 0, 10)
	must(t, err)
	var got []string
	for _, r := range list {
		line := r.Who + " " + r.Name + ":"
		for _, c := range r.Changes {
			line += fmt.Sprintf(" %s %s,", c.Action, c.Ref)
		}
		got = append(got, line)
	}
	want := []string{
		"file mesh.yml: removed endpoint a of shop/users, changed the settings,",
		"file mesh.yml: added endpoint a of shop/users, changed endpoint by-hand of shop/users, changed the settings,",
		"admin : added endpoint by-hand of shop/users, changed the settings,",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the history is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r, err := s.Revision(ctx, list[1].Revision)
	must(t, err)
	if d := r.Changes[2]; d.Before.Settings.Egress != "allow" || d.After.Settings.Egress != "deny" || d.After.Settings.MTLSMode != policy.Permissive {
		t.Errorf("the settings changed as %+v", d)
	}
	between, err := s.Between(ctx, list[2].Revision, 0)
	must(t, err)
	if len(between) != 1 || between[0].ID != "by-hand" { // its port; all else is as it was
		t.Errorf("between then and now: %+v", between)
	}
}

func TestARollbackLeavesWhatIsTheFiles(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	first := edit(t, s, patch(`{"egress":"allow","mtls_mode":"permissive"}`), addRule("users", "r", 1)).Revision
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny"}`), []policy.Endpoint{endpoint("users", "a"), endpoint("users", "b")}))
	second := edit(t, s, patch(`{"mtls_mode":"strict"}`), addRule("users", "r", 2), addEndpoint("users", "by-hand", 1)).Revision
	must(t, s.ApplyFile(ctx, meshFile("2", `{"egress":"deny","default_retry_attempts":7}`), []policy.Endpoint{endpoint("users", "a")}))
	edit(t, s, patch(`{"global_timeout":9}`))

	for _, dryRun := range []bool{true, false} {
		out, err := s.Rollback(ctx, second, dryRun)
		must(t, err)
		// Only the last: what the file did since is its own.
		if len(out.Differences) != 1 || out.Differences[0].After.Settings.Egress != "deny" || out.Differences[0].After.Settings.Resilience.Timeout.Default != 30 {
			t.Errorf("to the second: %+v", out.Differences)
		}
	}
	if _, err := s.Rollback(ctx, first, false); err != nil {
		t.Fatal(err)
	}
	st := s.State()
	if st.Settings.Egress != "deny" || st.Settings.Resilience.Retry.MaxAttempts != 7 || st.Settings.MTLSMode != policy.Permissive || st.Settings.Resilience.Timeout.Default != 30 {
		t.Errorf("settings in force: %+v", st.Settings)
	}
	if got := shown(s, shop("users")); got != "a healthy" || st.Services.Get(shop("users")).Rules[0].Weight != 1 {
		t.Errorf("endpoints %s, %+v", got, st.Services.Get(shop("users")).Rules)
	}
	if e, _ := st.endpoint(shop("users"), "a"); !e.File {
		t.Error("the file's endpoint is no longer the file's")
	}
	// Below the file there is what was, and nothing of the file's.
	must(t, s.ApplyFile(ctx, meshFile("3", `{}`), nil))
	if set := s.State().Settings; set.Egress != "allow" || set.Resilience.Retry.MaxAttempts != policy.DefaultSettings().Resilience.Retry.MaxAttempts {
		t.Errorf("without what the file had set: %+v", set)
	}
}

// What a rollback restores lies below the file: what the file had set at that time
// does not become the API's.
func TestARollbackDoesNotTakeTheFilesSettingsForTheAPIs(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny"}`), nil))
	then := s.State().Revision
	edit(t, s, patch(`{"global_timeout":9}`))
	_, err := s.Rollback(ctx, then, false)
	must(t, err)
	if set := s.State().Settings; set.Egress != "deny" || set.Resilience.Timeout.Default != 30 {
		t.Errorf("in force: %+v", set)
	}
	must(t, s.ApplyFile(ctx, meshFile("2", `{}`), nil))
	if set := s.State().Settings; set.Egress != policy.DefaultSettings().Egress {
		t.Errorf("without the file: %+v", set)
	}
}

// Before the file there was an endpoint of somebody's; it comes back when the file
// has it no more and somebody asks for the time before.
func TestARollbackBringsBackWhatTheFileHadTakenOver(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	first := edit(t, s, addEndpoint("users", "a", 1)).Revision
	must(t, s.ApplyFile(ctx, meshFile("1", `{}`), []policy.Endpoint{endpoint("users", "a")}))
	if out, err := s.Rollback(ctx, first, false); err != nil || len(out.Differences) != 0 {
		t.Errorf("while the file has it: %+v, %v", out, err)
	}
	must(t, s.ApplyFile(ctx, meshFile("2", `{}`), nil))
	_, err := s.Rollback(ctx, first, false)
	must(t, err)
	if e, ok := s.State().endpoint(shop("users"), "a"); !ok || e.File || e.Port != 1 {
		t.Errorf("%+v", e)
	}
}

func TestARollbackToWhatDoesNotGoWithTheFileIsRefused(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	first := edit(t, s, patch(`{"egress":"deny"}`)).Revision
	must(t, s.UpdateSettings(ctx, []byte(`{"security": {"ssl": {"cert_file": "a", "key_file": "b"}}}`)))
	must(t, s.ApplyFile(ctx, meshFile("1", `{"security":{"ssl":{"enabled":true}}}`), nil))
	var p policy.Problems
	if _, err := s.Rollback(ctx, first, false); !errors.As(err, &p) || !strings.Contains(err.Error(), "under what the mesh file mesh.yml sets") {
		t.Errorf("%v", err)
	}
}

// After the file was let go its settings are the API's: the time of the file is
// brought back as it was in force.
func TestARollbackToTheTimeOfAFileThatWasLetGo(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.ApplyFile(ctx, meshFile("1", `{"egress":"deny"}`), nil))
	then := s.State().Revision
	edit(t, s, patch(`{"global_timeout":9}`))
	must(t, s.ReleaseFile(ctx))
	edit(t, s, patch(`{"egress":"allow"}`))
	_, err := s.Rollback(ctx, then, false)
	must(t, err)
	if set := s.State().Settings; set.Egress != "deny" || set.Resilience.Timeout.Default != 30 {
		t.Errorf("%+v", set)
	}
}

func TestHealthProxiesAndMarksLeaveTheFileItsEndpoint(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	same := []policy.Endpoint{endpoint("users", "a")}
	must(t, s.ApplyFile(ctx, meshFile("1", `{}`), same))
	is := func(after string, meshed bool, status string) {
		t.Helper()
		e, ok := s.State().endpoint(shop("users"), "a")
		if !ok || !e.File || e.Leased || e.Meshed != meshed || e.Status != status {
			t.Errorf("after %s: %+v", after, e)
		}
	}
	lighter := endpoint("users", "a")
	lighter.Weight = 3
	must(t, s.ApplyFile(ctx, meshFile("1b", `{}`), []policy.Endpoint{lighter}))
	is("another weight", false, policy.Healthy)
	must(t, s.SetMeshed(ctx, "shop", "users", "a"))
	is("a mark", true, policy.Healthy)
	must(t, s.SetStatus(ctx, "shop", "users", "a", policy.Unhealthy))
	is("a failed check", true, policy.Unhealthy)
	heavier := endpoint("users", "a")
	heavier.Weight = 7
	must(t, s.ApplyFile(ctx, meshFile("2", `{}`), []policy.Endpoint{heavier}))
	is("a change of the file", true, policy.Unhealthy)
	// A proxy that offers an endpoint of the same name.
	l, err := s.Attach(ctx, Proxy{ID: "p", Service: shop("users")}, []policy.Endpoint{endpoint("users", "a"), endpoint("users", "own")})
	must(t, err)
	is("a proxy came", true, policy.Unhealthy)
	must(t, l.KeepAlive(ctx))
	must(t, l.Close(ctx))
	is("it went", true, policy.Unhealthy)
	if got := shown(s, shop("users")); got != "a unhealthy" {
		t.Errorf("endpoints: %s", got)
	}
	must(t, s.ReleaseFile(ctx))
	if e, _ := s.State().endpoint(shop("users"), "a"); e.File || !e.Meshed {
		t.Errorf("let go: %+v", e)
	}
	moved := endpoint("users", "b")
	must(t, s.ApplyFile(ctx, meshFile("3", `{}`), []policy.Endpoint{moved}))
	must(t, s.SetMeshed(ctx, "shop", "users", "b"))
	moved.IP = "10.0.0.77"
	must(t, s.ApplyFile(ctx, meshFile("4", `{}`), []policy.Endpoint{moved}))
	if e, _ := s.State().endpoint(shop("users"), "b"); e.Meshed {
		t.Error("what was seen beside one address is believed of another")
	}
}

// In the embedded store a file of thousands is one change: one revision, all at once.
func TestALargeFileIsOneChangeInTheEmbeddedStore(t *testing.T) {
	s := run(t, Config{DataDir: dataDir(t)})
	var many []policy.Endpoint
	for i := range 2000 {
		many = append(many, endpoint(fmt.Sprint("svc", i%200), fmt.Sprint("e", i)))
	}
	must(t, s.ApplyFile(t.Context(), meshFile("1", `{"egress":"deny"}`), many))
	list, err := s.History(t.Context(), 0, 10)
	must(t, err)
	if len(list) != 1 || list[0].Total != 2001 || list[0].Revision != s.State().SettingsRevision {
		t.Errorf("%d changes, the newest of %d resources", len(list), list[0].Total)
	}
}

// The secret of the settings below a file is no more shown than another.
func TestTheHistoryOfAFileHasNoSecretToShow(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	must(t, s.ApplyFile(ctx, meshFile("1", `{"security":{"jwt_secret":"0123456789abcdef0123456789abcdef"}}`), nil))
	r, err := s.Revision(ctx, lastRevision(t, s))
	must(t, err)
	b, err := json.Marshal(r.Changes[0].WithoutSecrets())
	must(t, err)
	if strings.Contains(string(b), "0123456789") {
		t.Errorf("%s", b)
	}
}
