package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

const (
	// heartbeat is the time without a change after which a watcher hears that it
	// is still connected. Proxies on the way close what is silent for a minute.
	heartbeat = 15 * time.Second
	// slowWatcher is how long a watcher may take to accept what it is sent before
	// it is cut. It asks again for what it missed.
	slowWatcher = 10 * time.Second
	eventStream = "text/event-stream"
)

// watched tells which list a request wants to watch.
func watched(r *http.Request) (list, bool, error) {
	if r.Method != http.MethodGet || !r.URL.Query().Has("watch") {
		return list{}, false, nil
	}
	on, err := strconv.ParseBool(r.URL.Query().Get("watch"))
	if err != nil || !on {
		return list{}, false, nil // the list's own handler says what is wrong
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, BasePath+"/"), "/")
	for name := range r.URL.Query() {
		if name != "watch" {
			return list{}, false, refuse(http.StatusBadRequest, "query.%s: unknown query parameter", name)
		}
	}
	switch what := parts[0]; {
	case len(parts) == 1 && (what == "services" || what == "security-rules" || what == "config"):
		return list{what: what}, true, nil
	case len(parts) == 3 && what == "services":
		return list{"endpoints", policy.ServiceName{Namespace: parts[1], Name: parts[2]}}, true, nil
	case len(parts) == 3 && what == "traffic-rules":
		return list{what, policy.ServiceName{Namespace: parts[1], Name: parts[2]}}, true, nil
	}
	return list{}, false, nil
}

// watch sends a list's elements and then what changes, as server-sent events
// (HTML Living Standard section 9.2), until the client leaves, is too slow, or
// the server is closed. The id of an event is the revision that it completes:
// an event of a revision of which more follow has none.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, l list) {
	at, known, err := s.from(r)
	if err != nil {
		writeFailure(w, http.StatusBadRequest, "%v", err)
		return
	}
	if !s.feed.enter() {
		w.Header().Set("Retry-After", "5")
		writeFailure(w, http.StatusServiceUnavailable, "there are %d watches already, or the control plane is shutting down", maxWatchers)
		return
	}
	defer s.feed.leave()
	out := newStream(w)
	if r.Header.Get("Last-Event-ID") != "" && !known {
		out.send("reset", noID, struct{}{})
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for first := true; ; first = false {
		n := s.feed.since(l, at)
		if n.closed {
			return
		}
		if !first && n.whole != nil {
			out.send("reset", noID, struct{}{})
		}
		out.tell(l, n, first)
		at = n.at
		if out.flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-n.wake:
		case <-beat.C:
			out.beat(at.revision)
		}
	}
}

// from reads where a client left off. known is not set when it is to be told
// everything.
func (s *Server) from(r *http.Request) (at cursor, known bool, err error) {
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		return start, false, nil
	}
	revision, err := strconv.ParseInt(last, 10, 64)
	if err != nil {
		return start, false, fmt.Errorf("header.Last-Event-ID: %s is not a revision", show(last))
	}
	if at, known = s.feed.resume(revision); !known {
		at = start
	}
	return at, known, nil
}

// stream writes events. After an error it writes nothing.
type stream struct {
	w  *bufio.Writer
	rc *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	rc := http.NewResponseController(w)
	// The server's own deadlines are for requests that end.
	_ = rc.SetReadDeadline(time.Time{}) // a recorder in a test has none
	w.Header().Set("Content-Type", eventStream)
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	return &stream{w: bufio.NewWriter(w), rc: rc}
}

// tell sends what is new, or everything.
func (o *stream) tell(l list, n news, first bool) {
	if n.whole != nil {
		for _, v := range elements(n.whole, l) {
			o.send(string(policy.Added), noID, v)
		}
	}
	for i, e := range n.events {
		id := e.revision
		if i+1 < len(n.events) && n.events[i+1].revision == id {
			id = noID
		}
		o.send(string(e.action), id, e.value)
	}
	if first || n.whole != nil {
		o.send("synced", n.at.revision, struct{}{})
	}
}

// noID is the id of an event that has none.
const noID = -1

// send writes an event.
func (o *stream) send(name string, id int64, data any) {
	_ = o.rc.SetWriteDeadline(time.Now().Add(slowWatcher)) // a recorder in a test has none
	b, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("an element of a list has no JSON: %v", err))
	}
	if id != noID {
		fmt.Fprintf(o.w, "id: %d\n", id)
	}
	fmt.Fprintf(o.w, "event: %s\ndata: %s\n\n", name, b) // errors stay with the writer, for flush
}

// beat tells that nothing happened, and up to when: an id without data moves the
// client's Last-Event-ID on and is no event to it.
func (o *stream) beat(revision int64) {
	_ = o.rc.SetWriteDeadline(time.Now().Add(slowWatcher))
	fmt.Fprintf(o.w, ": still here\nid: %d\n\n", revision)
}

func (o *stream) flush() error {
	if err := o.w.Flush(); err != nil {
		return err
	}
	return o.rc.Flush()
}

// elements gives what a list holds, as it is shown.
func elements(now Snapshot, l list) []any {
	var out []any
	switch l.what {
	case "services":
		for _, v := range now.Services() {
			out = append(out, v)
		}
	case "endpoints":
		for _, v := range viewEndpoints(now, l.service) {
			out = append(out, v)
		}
	case "traffic-rules":
		for _, v := range viewTrafficRules(now, l.service) {
			out = append(out, v)
		}
	case "security-rules":
		for _, v := range viewSecurityRules(now) {
			out = append(out, v)
		}
	case "config":
		out = append(out, viewConfig(now.Settings().Value))
	}
	return out
}
