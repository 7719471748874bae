package api_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// watcher reads server-sent events.
type watcher struct {
	t    *testing.T
	resp *http.Response
	in   *bufio.Reader
	stop context.CancelFunc
}

// watch opens a watch that ends with the test.
func watch(t *testing.T, c *api.Client, path, last string) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", c.BaseURL+api.BasePath+path+"?watch=1", nil)
	check(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := c.HTTP.Do(req)
	check(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s: %d %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return &watcher{t, resp, bufio.NewReader(resp.Body), cancel}
}

// sse is one event.
type sse struct{ id, name, data string }

// next reads one event; ok is not set at the end.
func (w *watcher) next() (e sse, ok bool) {
	w.t.Helper()
	for {
		line, err := w.in.ReadString('\n')
		if err != nil {
			return e, false
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if line == "\n" && e.name != "" {
				return e, true
			}
		}
	}
}

// wants reads events, "name id field" each, where field is the data's named so.
func (w *watcher) wants(fieldName string, want ...string) {
	w.t.Helper()
	for _, s := range want {
		e, ok := w.next()
		got := e.name + " " + e.id
		if e.data != "{}" {
			got += " " + field(w.t, e.data, fieldName)
		}
		if !ok || strings.TrimSpace(got) != s {
			w.t.Fatalf("got %q (%v), want %q; data %s", got, ok, s, e.data)
		}
	}
}

func put(t *testing.T, c *api.Client, path, body string) {
	t.Helper()
	if got := send(t, c, "PUT", api.BasePath+path, body); got.status != 200 {
		t.Fatalf("%s: %d %s", path, got.status, got.body)
	}
}

func TestAWatchTellsWhatIsAndThenWhatChanges(t *testing.T) {
	for _, l := range []struct {
		list, path, body, other string
		field, id               string
	}{
		{"/services/default/web", one[0].path, one[0].body, one[0].other, "id", `"e1"`},
		{"/traffic-rules/default/web", one[1].path, one[1].body, one[1].other, "id", `"t1"`},
		{"/security-rules", one[2].path, one[2].body, one[2].other, "id", `"s1"`},
	} {
		c := serve(t, newMesh())
		put(t, c, l.path, l.body)
		w := watch(t, c, l.list, "")
		w.wants(l.field, "added  "+l.id, "synced 1")
		put(t, c, "/config", `{"global_timeout":3}`) // none of this list
		put(t, c, l.path, l.other)
		w.wants(l.field, "changed 3 "+l.id)
		if got := send(t, c, "DELETE", api.BasePath+l.path, ""); got.status != 200 {
			t.Fatal(got.body)
		}
		w.wants(l.field, "removed 4 "+l.id)
		put(t, c, l.path, l.body)
		w.wants(l.field, "added 5 "+l.id)
	}
}

func TestServicesAndSettingsAreWatchedToo(t *testing.T) {
	c := serve(t, newMesh())
	services, config := watch(t, c, "/services", ""), watch(t, c, "/config", "")
	services.wants("", "synced 0")
	config.wants("egress", `added  "allow"`, "synced 0")
	put(t, c, "/services/default/web/a", one[0].body)
	services.wants("endpoints", "added 1 1")
	put(t, c, "/services/default/web/b", one[0].body)
	services.wants("endpoints", "changed 2 2")
	put(t, c, "/config", `{"egress":"deny"}`)
	config.wants("egress", `changed 3 "deny"`)
	for _, id := range []string{"a", "b"} {
		send(t, c, "DELETE", api.BasePath+"/services/default/web/"+id, "")
	}
	services.wants("endpoints", "changed 4 1", "removed 5 1")
}

func TestAWatcherThatWasAwayIsToldWhatItMissed(t *testing.T) {
	c := serve(t, newMesh())
	put(t, c, "/security-rules/a", one[2].body)
	first := watch(t, c, "/security-rules", "")
	first.wants("id", `added  "a"`, "synced 1")
	first.stop()
	put(t, c, "/security-rules/b", one[2].body)
	put(t, c, "/security-rules/a", one[2].other)
	watch(t, c, "/security-rules", "1").wants("id", `added 2 "b"`, `changed 3 "a"`, "synced 3")
	watch(t, c, "/security-rules", "3").wants("id", "synced 3")
	// Who knows of what was never here is told everything anew.
	watch(t, c, "/security-rules", "99").wants("id", "reset", `added  "a"`, `added  "b"`, "synced 3")
	if got := send(t, c, "GET", "/api/v1/security-rules?watch=1", "", "Last-Event-ID: x"); got.status != 400 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// Events are kept for the newest few thousand changes. Beyond, there is a reset.
func TestAWatcherThatWasAwayForTooLongIsToldEverything(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	var edits []policy.Edit
	for i := range 5000 {
		r := policy.SecurityRule{SourceNamespace: "a", SourceService: "b", DestinationNamespace: "c", DestinationService: "d", AllowedMethods: []string{"GET"}}
		edits = append(edits, policy.Edit{Ref: policy.Ref{Kind: policy.KindSecurityRule, ID: fmt.Sprint(i)}, To: &policy.Resource{Security: &r}})
	}
	put(t, c, "/security-rules/first", one[2].body)
	behind := watch(t, c, "/security-rules", "1")
	behind.wants("id", "synced 1")
	_, err := m.Change(t.Context(), edits, false)
	check(t, err)
	behind.wants("id", "reset", `added  "first"`)
	watch(t, c, "/security-rules", "1").wants("id", "reset", `added  "first"`)
	watch(t, c, "/security-rules", "2").wants("id", "synced 2")
}

// Of more changes than are kept, those who were away for no longer than that are
// told each, in order.
func TestTheNewestEventsAreToldInOrderHoweverManyThereWere(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	const kept, made = 4096, 4096 + 100
	for i := range made { // revisions 1 to made, of one event each
		r := policy.SecurityRule{SourceNamespace: "a", SourceService: fmt.Sprint("s", i), DestinationNamespace: "c", DestinationService: "d", AllowedMethods: []string{"GET"}}
		_, err := m.Change(t.Context(), []policy.Edit{{Ref: policy.Ref{Kind: policy.KindSecurityRule, ID: "one"}, To: &policy.Resource{Security: &r}}}, false)
		check(t, err)
	}
	var want []string
	for i := made - kept; i < made; i++ {
		want = append(want, fmt.Sprintf(`changed %d "s%d"`, i+1, i))
	}
	watch(t, c, "/security-rules", fmt.Sprint(made-kept)).wants("source_service", append(want, fmt.Sprint("synced ", made))...)
	watch(t, c, "/security-rules", fmt.Sprint(made-2)).wants("source_service", append(want[kept-2:], fmt.Sprint("synced ", made))...)
	watch(t, c, "/security-rules", fmt.Sprint(made-kept-1)).wants("source_service", "reset", fmt.Sprintf(`added  "s%d"`, made-1))
}

// Several elements that change together have one id, at the last of them: who
// breaks off between them is told all of them again.
func TestAnIDCompletesARevision(t *testing.T) {
	c := serve(t, newMesh())
	w := watch(t, c, "/security-rules", "")
	w.wants("id", "synced 0")
	docs := strings.Repeat("kind: SecurityRule\nspec: {source_namespace: a, source_service: X, destination_namespace: c, destination_service: d}\n---\n", 2)
	docs = strings.Replace(strings.Replace(docs, "X", "b, id: one", 1), "X", "b, required_jwt: true, id: two", 1)
	read, err := api.ReadDocuments("f", []byte(docs))
	check(t, err)
	_, err = c.Apply(t.Context(), read, false)
	check(t, err)
	w.wants("id", `added  "one"`, `added 1 "two"`)
}

func TestWatchesAreCountedAndAskedForByTheirName(t *testing.T) {
	c := serve(t, newMesh())
	w := watch(t, c, "/services", "")
	w.wants("", "synced 0")
	if got := send(t, c, "GET", "/api/v1/metrics", ""); !strings.Contains(got.body, `"watches":1`) {
		t.Errorf("%s", got.body)
	}
	for _, path := range []string{"/services?watch=1&x=1", "/status?watch=1", "/services?watch=maybe", "/services/a/b/c?watch=1", "/certificates/ca?watch=1"} {
		refusal(t, send(t, c, "GET", api.BasePath+path, ""), 400)
	}
	if got := send(t, c, "GET", "/api/v1/services?watch=0", ""); got.body != "[]" {
		t.Errorf("%d %s", got.status, got.body)
	}
	refusal(t, send(t, c, "GET", "/api/v1/services?watch=1", "", "Authorization: "), 401)
}

// bubble serves over pipes in a synctest bubble.
type bubble struct {
	t     *testing.T
	conns chan net.Conn
	srv   *http.Server
	api   *api.Server
}

func newBubble(t *testing.T, m *mesh) *bubble {
	h, err := m.Serve(config(m))
	check(t, err)
	b := &bubble{t, make(chan net.Conn), &http.Server{Handler: h, ReadTimeout: time.Minute}, h}
	l := &pipeListener{conns: b.conns, done: make(chan struct{})}
	go b.srv.Serve(l)
	return b
}

func (b *bubble) watch(path string) (net.Conn, *bufio.Reader) {
	b.t.Helper()
	client, server := net.Pipe()
	b.conns <- server
	fmt.Fprintf(client, "GET /api/v1%s?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", path, token)
	in := bufio.NewReader(client)
	resp, err := http.ReadResponse(in, nil)
	check(b.t, err)
	return client, bufio.NewReader(resp.Body)
}

func TestAQuietWatchIsKeptAliveBeyondTheServersDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh()
		b := newBubble(t, m)
		client, in := b.watch("/services")
		defer client.Close()
		w := &watcher{t: t, in: in}
		w.wants("", "synced 0")
		start := time.Now()
		for range 20 { // five minutes of the bubble's clock
			line, err := in.ReadString('\n')
			check(t, err)
			id, err := in.ReadString('\n')
			check(t, err)
			if line != ": still here\n" || id != "id: 0\n" {
				t.Fatalf("%q %q", line, id)
			}
			in.ReadString('\n')
		}
		if waited := time.Since(start); waited != 5*time.Minute {
			t.Errorf("%v", waited)
		}
		b.api.Close()
		if _, err := in.ReadString('\n'); err == nil {
			t.Error("the watch goes on after the end")
		}
		b.srv.Close()
	})
}

func TestAWatcherThatDoesNotReadIsCutAndHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh()
		b := newBubble(t, m)
		slow, _ := b.watch("/security-rules")
		defer slow.Close()
		fast, in := b.watch("/security-rules")
		defer fast.Close()
		w := &watcher{t: t, in: in}
		w.wants("id", "synced 0")
		for i := range 3 {
			r := policy.SecurityRule{SourceNamespace: "a", SourceService: "b", DestinationNamespace: "c", DestinationService: "d", AllowedMethods: []string{"GET"}}
			_, err := m.Change(t.Context(), []policy.Edit{{Ref: policy.Ref{Kind: policy.KindSecurityRule, ID: fmt.Sprint(i)}, To: &policy.Resource{Security: &r}}}, false)
			check(t, err)
			w.wants("id", fmt.Sprintf(`added %d "%d"`, i+1, i))
		}
		time.Sleep(11 * time.Second) // of the bubble's clock
		synctest.Wait()
		if _, err := slow.Write([]byte("x")); err == nil {
			t.Error("who does not read is still connected")
		}
		b.api.Close()
		b.srv.Close()
	})
}

// A thousand watchers cost a thousand connections and one feed, and the next is
// refused.
func TestThereIsABoundOnWatches(t *testing.T) {
	m := newMesh()
	cfg := config(m)
	h, err := m.Serve(cfg)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", "/api/v1/services?watch=1", nil)
			req.Header.Set("Authorization", "Bearer "+token)
			h.ServeHTTP(&sink{}, req)
		})
	}
	for open := false; !open; {
		runtime.Gosched()
		w := &sink{}
		req, _ := http.NewRequest("GET", "/api/v1/metrics", nil)
		req.Header.Set("Authorization", "Bearer "+token)
		h.ServeHTTP(w, req)
		open = strings.Contains(w.body.String(), `"watches":1000,`)
	}
	w := &sink{}
	req, _ := http.NewRequest("GET", "/api/v1/services?watch=1", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	if h.ServeHTTP(w, req); w.status != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.body.String(), "1000 watches") {
		t.Errorf("%d %s", w.status, w.body.String())
	}
	cancel()
	wg.Wait()
}

// sink is a response that is kept.
type sink struct {
	header http.Header
	status int
	body   strings.Builder
}

func (s *sink) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}
func (s *sink) Write(b []byte) (int, error) { return s.body.Write(b) }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Flush()                      {}
