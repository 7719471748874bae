package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// one is a resource of each kind: where it is, a body, another body, and the
// same field of both.
var one = []struct{ kind, path, body, other, field, otherValue string }{
	{"endpoint", "/services/default/web/e1", `{"ip":"10.0.0.1","port":80}`, `{"ip":"10.0.0.1","port":81}`, "port", "81"},
	{"traffic rule", "/traffic-rules/default/web/t1", `{"weight":1,"timeout":1,"retry_attempts":1}`, `{"weight":2,"timeout":1,"retry_attempts":1}`, "weight", "2"},
	{"security rule", "/security-rules/s1", `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","mtls_mode":"strict"}`,
		`{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","mtls_mode":"permissive"}`, "mtls_mode", `"permissive"`},
	{"config", "/config", `{"egress":"deny"}`, `{"egress":"deny","default_policy":"allow"}`, "default_policy", `"allow"`},
}

func field(t *testing.T, body, name string) string {
	t.Helper()
	var o map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &o); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return string(o[name])
}

func TestEveryResourceIsCreatedReadReplacedAndRemovedByItsVersion(t *testing.T) {
	for _, r := range one {
		t.Run(r.kind, func(t *testing.T) {
			c := serve(t, newMesh())
			call := func(status int, method, body string, headers ...string) answer {
				t.Helper()
				got := send(t, c, method, api.BasePath+r.path, body, headers...)
				if got.status != status {
					t.Fatalf("%s %s %v: %d %s, want %d", method, body, headers, got.status, got.body, status)
				}
				return got
			}
			call(412, "PUT", r.body, "If-Match: *")
			call(412, "PUT", r.body, `If-Match: "1"`)
			first := call(200, "PUT", r.body, "If-None-Match: *").header.Get("ETag")
			if first != `"1"` {
				t.Errorf("ETag %s", first)
			}
			call(412, "PUT", r.other, "If-None-Match: *")
			read := call(200, "GET", "")
			if read.header.Get("ETag") != first || r.kind != "config" && field(t, read.body, "resource_version") != first {
				t.Errorf("ETag %s, body %s", read.header.Get("ETag"), read.body)
			}
			if got := call(304, "GET", "", "If-None-Match: "+first); got.body != "" || got.header.Get("ETag") != first {
				t.Errorf("304 with %q and ETag %s", got.body, got.header.Get("ETag"))
			}
			call(304, "GET", "", `If-None-Match: "0", W/`+first)
			call(200, "GET", "", `If-None-Match: "0"`)
			if same := call(200, "PUT", r.body); same.header.Get("ETag") != first {
				t.Errorf("the same again is version %s", same.header.Get("ETag"))
			}
			second := call(200, "PUT", r.other, `If-Match: "7", `+first).header.Get("ETag")
			if got := call(200, "GET", "", "If-None-Match: "+first); got.header.Get("ETag") != second || second == first || field(t, got.body, r.field) != r.otherValue {
				t.Errorf("after a replacement: %s %s", got.header.Get("ETag"), got.body)
			}
			lost := call(412, "PUT", r.body, "If-Match: "+first)
			if text := refusal(t, lost, 412); !strings.Contains(text, "is at version 2, not 1: it was changed meanwhile; read it again") {
				t.Error(text)
			}
			call(412, "DELETE", "", "If-Match: "+first)
			call(200, "DELETE", "", "If-Match: "+second)
			if r.kind != "config" { // which is never absent
				call(404, "GET", "")
			}
			call(412, "DELETE", "", "If-Match: *")
			call(400, "PUT", r.body, "If-Match: 1")
			call(400, "PUT", r.body, `If-None-Match: "1"`)
			call(412, "PUT", r.body, `If-Match: "not-ours"`)
		})
	}
}

func TestOfManyWritersOneWinsAndTheOthersAreTold(t *testing.T) {
	for _, r := range one {
		c := serve(t, newMesh())
		tag := send(t, c, "PUT", api.BasePath+r.path, r.body).header.Get("ETag")
		var won, lost atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				switch got := send(t, c, "PUT", api.BasePath+r.path, r.other, "If-Match: "+tag); got.status {
				case 200:
					won.Add(1)
				case 412:
					lost.Add(1)
				default:
					t.Errorf("%d %s", got.status, got.body)
				}
			})
		}
		if wg.Wait(); won.Load() != 1 || lost.Load() != 7 {
			t.Errorf("%s: %d won, %d lost", r.kind, won.Load(), lost.Load())
		}
	}
}

func TestAnAnswerThatShowsTheMeshsSettingsIsAnotherWhenTheyChange(t *testing.T) {
	c := serve(t, newMesh())
	const path = api.BasePath + "/traffic-rules/default/web/r"
	put := send(t, c, "PUT", path, `{}`)
	before := send(t, c, "GET", path, "").header.Get("ETag")
	if before != put.header.Get("ETag") {
		t.Errorf("PUT answers ETag %s, GET %s", put.header.Get("ETag"), before)
	}
	send(t, c, "POST", "/api/v1/config", `{"global_timeout":5}`)
	if got := send(t, c, "GET", path, "", "If-None-Match: "+before); got.status != 200 || field(t, got.body, "timeout") != "5" {
		t.Errorf("%d %s", got.status, got.body)
	}
	// But the rule itself is the same, and may be replaced.
	if got := send(t, c, "PUT", path, `{"weight":7}`, "If-Match: "+before); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestARuleMayBringItsID(t *testing.T) {
	c := serve(t, newMesh())
	got := send(t, c, "POST", "/api/v1/traffic-rules/default/web", `{"id":"canary"}`)
	if got.status != 200 || got.header.Get("Location") != "/api/v1/traffic-rules/default/web/canary" {
		t.Errorf("%d %s %v", got.status, got.body, got.header)
	}
	refusal(t, send(t, c, "POST", "/api/v1/traffic-rules/default/web", `{"id":"canary"}`), 409)
	if text := refusal(t, send(t, c, "POST", "/api/v1/security-rules", `{"id":"a/b","source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d"}`), 400); !strings.HasPrefix(text, "body.id: ") {
		t.Error(text)
	}
	for _, r := range one[:3] {
		body := strings.Replace(r.body, "{", `{"id":"other",`, 1)
		if text := refusal(t, send(t, c, "PUT", api.BasePath+r.path, body), 400); !strings.HasPrefix(text, `body.id: "other" is not "`) {
			t.Error(text)
		}
	}
	refusal(t, send(t, c, "PUT", "/api/v1/security-rules/a%2Fb", one[2].body), 400)
}

func TestADryRunOfAnyWriteStoresNothingAndTellsWhatItWouldDo(t *testing.T) {
	m := newMesh()
	m.Connect(policy.Figures{}, api.ProxyStatus{ID: "p1", Namespace: "default", ServiceName: "web"})
	c := serve(t, m)
	for _, r := range one {
		send(t, c, "PUT", api.BasePath+r.path, r.body)
	}
	before := m.Newest()
	for _, w := range []struct{ method, path, body, want string }{
		{"POST", "/services/register", endpointWith(`"weight":1`), "added endpoint e of default/web"},
		{"PUT", "/services/default/web/e1", one[0].other, "changed endpoint e1 of default/web"},
		{"PUT", "/services/default/web/e1", one[0].body, "unchanged endpoint e1 of default/web"},
		{"DELETE", "/services/default/web/e1", "", "removed endpoint e1 of default/web"},
		{"DELETE", "/services/default/web/none", "", ""},
		{"POST", "/traffic-rules/default/web", `{"id":"t2"}`, "added traffic rule t2 of default/web"},
		{"PUT", "/traffic-rules/default/web/t1", one[1].other, "changed traffic rule t1 of default/web"},
		{"DELETE", "/traffic-rules/default/web/t1", "", "removed traffic rule t1 of default/web"},
		{"POST", "/security-rules", strings.Replace(one[2].body, "{", `{"id":"s2",`, 1), "added security rule s2"},
		{"PUT", "/security-rules/s1", one[2].other, "changed security rule s1"},
		{"DELETE", "/security-rules/s1", "", "removed security rule s1"},
		{"POST", "/config", `{"global_timeout":7}`, "changed the settings"},
		{"POST", "/config", `{}`, "unchanged the settings"},
		{"PUT", "/config", `{}`, "changed the settings"},
		{"DELETE", "/config", "", "changed the settings"},
		{"POST", "/apply", `{"documents":[{"kind":"Config","spec":{"global_timeout":7}},{"kind":"TrafficRule","service":"web","spec":{"id":"t1","weight":9}}]}`,
			"changed the settings, changed traffic rule t1 of default/web"},
		{"POST", "/rollback", `{"revision":3}`, "changed the settings"},
	} {
		var got api.Stored
		a := send(t, c, w.method, api.BasePath+w.path+"?dry_run=1", w.body)
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || !got.DryRun || got.Status != "" {
			t.Errorf("%s %s: %d %s", w.method, w.path, a.status, a.body)
			continue
		}
		var lines []string
		for i := range got.Changes {
			ch := &got.Changes[i]
			lines = append(lines, ch.Action+" "+ch.Ref().String())
			if (ch.Action == "added") != (ch.Before == nil) || (ch.Action == "removed") != (ch.After == nil) {
				t.Errorf("%s %s: before %s, after %s", w.method, w.path, ch.Before, ch.After)
			}
		}
		if strings.Join(lines, ", ") != w.want || w.want != "" && (len(got.Proxies) != 1 || got.Proxies[0].ID != "p1") {
			t.Errorf("%s %s: %s, want %s; proxies %v", w.method, w.path, strings.Join(lines, ", "), w.want, got.Proxies)
		}
	}
	if m.Newest() != before {
		t.Error("something was stored")
	}
	for _, bad := range []string{"/config?dry_run=maybe", "/config?dryrun=1"} {
		refusal(t, send(t, c, "POST", api.BasePath+bad, `{}`), 400)
	}
	refusal(t, send(t, c, "POST", "/api/v1/config?dry_run=1", `{"egres":"deny"}`), 400)
	refusal(t, send(t, c, "PUT", "/api/v1/config?dry_run=1", `{}`, "If-None-Match: *"), 412)
}

func TestASecretIsSeenToChangeAndNotSeen(t *testing.T) {
	c := serve(t, newMesh())
	check(t, func() error {
		_, err := c.UpdateSettings(t.Context(), json.RawMessage(`{"security":{"jwt_secret":"hush"}}`))
		return err
	}())
	got := send(t, c, "POST", "/api/v1/config?dry_run=1", `{"security":{"jwt_secret":"whisper"}}`)
	if strings.Contains(got.body, "hush") || strings.Contains(got.body, "whisper") || !strings.Contains(got.body, "(hidden, another)") {
		t.Errorf("a dry run shows %s", got.body)
	}
	_, err := c.UpdateSettings(t.Context(), json.RawMessage(`{"security":{"jwt_secret":"whisper"}}`))
	check(t, err)
	for _, path := range []string{"/history", "/history/1", "/history/2", "/diff?from=1"} {
		got := send(t, c, "GET", api.BasePath+path, "")
		if got.status != 200 || strings.Contains(got.body, "hush") || strings.Contains(got.body, "whisper") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

func TestReplacingTheSettingsForgetsWhatIsNotNamed(t *testing.T) {
	c := serve(t, newMesh())
	send(t, c, "POST", "/api/v1/config", `{"egress":"deny","global_timeout":5}`)
	if got := send(t, c, "PUT", "/api/v1/config", `{"global_timeout":6}`); got.body != `{"status":"config replaced"}` {
		t.Errorf("%d %s", got.status, got.body)
	}
	got := send(t, c, "GET", "/api/v1/config", "")
	if field(t, got.body, "egress") != `"allow"` || field(t, got.body, "global_timeout") != "6" {
		t.Errorf("%s", got.body)
	}
	if got := send(t, c, "DELETE", "/api/v1/config", ""); got.body != `{"status":"config reset"}` {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := send(t, c, "GET", "/api/v1/config", ""); field(t, got.body, "global_timeout") != "30" || got.header.Get("ETag") != `"0"` {
		t.Errorf("%s %s", got.header.Get("ETag"), got.body)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	send(t, c, "PUT", "/api/v1/traffic-rules/default/web/t1", one[1].body)
	before := m.Newest()
	for _, w := range []struct{ docs, want string }{
		{`{"kind":"Config","spec":{"egress":"deny"}},{"kind":"TrafficRule","service":"web","spec":{"weight":-1}}`, "body.documents[1].spec.weight: -1 is not in 0..1000000"},
		{`{"kind":"TrafficRule","service":"web","spec":{"id":"x"}},{"kind":"TrafficRule","service":"web","spec":{"id":"x","weight":3}}`, "body.documents[1]: traffic rule x of default/web is there twice"},
		{`{"kind":"Nonsense","spec":{}}`, `body.documents[0].kind: "Nonsense" is unknown; known here: Endpoint, TrafficRule, SecurityRule, Config, ExternalService`},
		{`7`, "body.documents[0]: 7 is not an object"},
	} {
		if text := refusal(t, send(t, c, "POST", "/api/v1/apply", `{"documents":[`+w.docs+`]}`), 400); text != w.want {
			t.Errorf("%s\nwant %s", text, w.want)
		}
	}
	if m.Newest() != before {
		t.Error("something was stored")
	}
	docs := strings.Repeat(`{"kind":"Config","spec":{}},`, 10_001)
	refusal(t, send(t, c, "POST", "/api/v1/apply", `{"documents":[`+docs[:len(docs)-1]+`]}`), 413)
	// Several documents are one revision.
	got := send(t, c, "POST", "/api/v1/apply", `{"documents":[{"kind":"Config","spec":{"egress":"deny"}},{"kind":"TrafficRule","service":"web","spec":{"weight":3}},{"kind":"TrafficRule","service":"web","spec":{"weight":3}}]}`)
	var out api.Stored
	if err := json.Unmarshal([]byte(got.body), &out); err != nil || out.Revision != before+1 || m.Newest() != before+1 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	var lines []string
	for _, r := range out.Results {
		lines = append(lines, r.Result)
	}
	if strings.Join(lines, " ") != "changed added unchanged" || out.Results[1].ID != out.Results[2].ID {
		t.Errorf("%+v", out.Results)
	}
}

func TestARuleThatApplyMadeAndSomebodyChangedIsLeftAlone(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	const doc = `{"documents":[{"kind":"TrafficRule","service":"web","spec":{"weight":3}}]}`
	apply := func() api.Applied {
		t.Helper()
		var out api.Stored
		got := send(t, c, "POST", "/api/v1/apply", doc)
		if err := json.Unmarshal([]byte(got.body), &out); err != nil || len(out.Results) != 1 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		return out.Results[0]
	}
	made := apply()
	send(t, c, "PUT", "/api/v1/traffic-rules/default/web/"+made.ID, `{"weight":4}`)
	again := apply()
	if again.Result != "added" || again.ID == made.ID || len(m.TrafficRules(web)) != 2 {
		t.Errorf("first %+v, then %+v: %+v", made, again, m.TrafficRules(web))
	}
	if third := apply(); third.Result != "unchanged" || third.ID != again.ID {
		t.Errorf("then %+v", third)
	}
}

func TestTheHistoryIsShownAndTakenBack(t *testing.T) {
	m := newMesh()
	c, ctx := serve(t, m), t.Context()
	for i := range 3 {
		send(t, c, "PUT", "/api/v1/traffic-rules/default/web/r", fmt.Sprintf(`{"weight":%d}`, i))
	}
	list, err := c.History(ctx, 0, 2)
	check(t, err)
	if len(list) != 2 || list[0].Revision != 3 || list[0].Who != "admin" || list[0].Changes[0].Ref().String() != "traffic rule r of default/web" || list[0].Changes[0].After != nil {
		t.Errorf("%+v", list)
	}
	if list, err := c.History(ctx, 2, 10); err != nil || len(list) != 1 || list[0].Changes[0].Action != "added" {
		t.Errorf("%+v, %v", list, err)
	}
	r, err := c.Revision(ctx, 3)
	check(t, err)
	if field(t, string(r.Changes[0].Before), "weight") != "1" || field(t, string(r.Changes[0].After), "weight") != "2" {
		t.Errorf("%s to %s", r.Changes[0].Before, r.Changes[0].After)
	}
	diff, err := c.Diff(ctx, 1, 0)
	check(t, err)
	if len(diff) != 1 || field(t, string(diff[0].Before), "weight") != "0" || field(t, string(diff[0].After), "weight") != "2" {
		t.Errorf("%+v", diff)
	}
	back, err := c.Rollback(ctx, 2, false)
	check(t, err)
	if back.Revision != 4 || m.TrafficRules(web)[0].Weight != 1 || back.Status != "rolled back" || len(back.Changes) != 1 {
		t.Errorf("%+v", back)
	}
	if again, err := c.Rollback(ctx, 2, false); err != nil || again.Revision != 0 || len(again.Changes) != 0 {
		t.Errorf("a rollback to what is: %+v, %v", again, err)
	}
	for _, path := range []string{"GET /history/99", "GET /diff?from=99"} {
		method, path, _ := strings.Cut(path, " ")
		refusal(t, send(t, c, method, api.BasePath+path, ""), 404)
	}
	refusal(t, send(t, c, "POST", "/api/v1/rollback", `{"revision":99}`), 404)
	for _, path := range []string{"/history?limit=0", "/history?limit=9999", "/history/x", "/diff", "/diff?from=-1"} {
		refusal(t, send(t, c, "GET", api.BasePath+path, ""), 400)
	}
	refusal(t, send(t, c, "POST", "/api/v1/rollback", `{}`), 400)
}

func TestManyWhoApplyOneFileAddItsRulesOnce(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	docs, err := api.ReadDocuments("f", []byte(meshYAML))
	check(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Apply(t.Context(), docs, false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(m.TrafficRules(web)) != 2 || len(m.SecurityRules()) != 1 {
		t.Errorf("%+v, %+v", m.TrafficRules(web), m.SecurityRules())
	}
}
