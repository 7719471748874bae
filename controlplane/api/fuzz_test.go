package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
)

// FuzzBodies sends any body to any route that takes one. Whatever it is, the
// answer is 200 and one write at most, or 400 and none; never another.
func FuzzBodies(f *testing.F) {
	paths := []string{"/services/register", "/traffic-rules/default/web", "/security-rules", "/config", "/certificates/issue", "/tokens", "/apply", "/rollback"}
	for i, body := range []string{
		userService1, `{"weight":1e400}`, `{"a":{"a":1,"a":2}}`, `{"services":{"web":null}}`, `[[[`, "{\"\xff\":1}", `{"match_headers":{"a":"regex:("}}`,
		`{"service_name":"web","namespace":"default","ttl":-1}`, `{"global_timeout":5,"resilience":{"timeout":{"default":6}}}`,
	} {
		f.Add(uint8(i), []byte(body))
	}
	m := newMesh()
	h, err := api.New(config(m))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		if m.stored() > 100 { // it remembers every state
			*m = *newMesh()
		}
		before := m.stored()
		req := httptest.NewRequest(http.MethodPost, api.BasePath+paths[int(which)%len(paths)], strings.NewReader(string(body)))
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		writes := m.stored() - before
		switch w.Code {
		case http.StatusOK:
			if writes > 1 || !json.Valid(w.Body.Bytes()) {
				t.Errorf("%d writes, %s", writes, w.Body)
			}
		case http.StatusBadRequest, http.StatusNotFound: // a revision that is not there
			var answer map[string]string
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer["error"] == "" || len(answer) != 1 {
				t.Errorf("not an error body: %s", w.Body)
			}
			if writes != 0 {
				t.Errorf("refused (%s) but stored", answer["error"])
			}
		default:
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// FuzzReadDocuments: no file makes it panic, and what it takes the control
// plane takes.
func FuzzReadDocuments(f *testing.F) {
	f.Add([]byte(meshYAML))
	f.Add([]byte(`[{"kind":"Config","spec":{}}]`))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("? x\n: y\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := api.ReadDocuments("f", data)
		if err != nil {
			if len(docs) != 0 {
				t.Error("documents and an error")
			}
			return
		}
		for _, d := range docs {
			if d.Kind == "" || d.String() == "" || d.Position == "" {
				t.Errorf("%+v", d)
			}
		}
	})
}
