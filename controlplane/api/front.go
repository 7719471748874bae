package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"
)

const (
	maxBody     = 1 << 20          // bytes of a request's body
	bodyTimeout = 10 * time.Second // for all of a request's body to arrive
)

// front is what every request passes before its route, in this order.
func (s *Server) front(mux *http.ServeMux) http.Handler {
	var browsers http.CrossOriginProtection
	want := sha256.Sum256([]byte(s.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store") // keys and tokens are among the answers
		// A page of another site must not use the operator's browser as its hand.
		if err := browsers.Check(r); err != nil {
			s.refused.count(s, r, otherSite)
			writeFailure(w, http.StatusForbidden, "%v", err)
			return
		}
		// Nor by a name of its own that it makes resolve to loopback.
		if s.Insecure && !isLocalHost(r.Host) {
			s.refused.count(s, r, otherSite)
			writeFailure(w, http.StatusForbidden, "Host %q is not this machine, and the API is served without a token", r.Host)
			return
		}
		if !s.Insecure && !isOpen(r) && !authorized(r, want) {
			s.unauthorized(w, r)
			return
		}
		// A route that does not exist is told before a body is read for it.
		if !routed(mux, w, r) {
			return
		}
		if l, ok, err := watched(r); err != nil {
			writeFailure(w, http.StatusBadRequest, "%v", err)
			return
		} else if ok {
			s.watch(w, r, l)
			return
		}
		if (r.Method == http.MethodPost || r.Method == http.MethodPut) && !readBody(w, r) {
			return
		}
		s.freshen(w, r)
		mux.ServeHTTP(w, r)
	})
}

// freshen lets a read see every change that was answered before, by whichever
// control plane. When the store does not tell in time, the read is answered all
// the same, from what is known, and says so (RFC 7234 section 5.5.1).
func (s *Server) freshen(w http.ResponseWriter, r *http.Request) {
	if s.Cluster == nil || r.Method != http.MethodGet || isOpen(r) || path.Base(r.URL.Path) == "status" {
		return
	}
	if err := s.Cluster.Fresh(r.Context()); err != nil {
		w.Header().Set("Warning", `110 weir "this may be out of date: `+strings.NewReplacer(`"`, `'`, "\r", " ", "\n", " ").Replace(err.Error())+`"`)
	}
}

// isOpen tells whether a request needs no token. The root's certificate is
// public: who is to trust it has no secret yet.
func isOpen(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.URL.Path == BasePath+"/certificates/ca"
}

// authorized compares digests, which takes as long for a token of any length
// and any prefix in common.
func authorized(r *http.Request, want [sha256.Size]byte) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

func isLocalHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// routed answers, in JSON, what the mux would answer in plain text or by a
// redirect that turns a POST into a GET.
func routed(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) bool {
	h, pattern := mux.Handler(r)
	if pattern != "" && path.Clean(r.URL.Path) == r.URL.Path {
		return true
	}
	var found statusOnly
	if pattern == "" {
		h.ServeHTTP(&found, r)
	}
	if found.status != http.StatusMethodNotAllowed {
		writeFailure(w, http.StatusNotFound, "there is no %q", r.URL.Path)
		return false
	}
	allow := found.Header().Get("Allow")
	w.Header().Set("Allow", allow)
	writeFailure(w, http.StatusMethodNotAllowed, "%s takes %s, not %s", r.URL.Path, allow, r.Method)
	return false
}

// statusOnly takes a handler's status and header and forgets its body.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

// readBody reads a body whole, within bounds of size and time. The deadline is
// lifted afterwards: net/http would take it for the client's leaving and cancel
// a slow write to the store.
func readBody(w http.ResponseWriter, r *http.Request) bool {
	if !isJSON(r.Header.Get("Content-Type")) {
		writeFailure(w, http.StatusUnsupportedMediaType, "Content-Type %q is not application/json", r.Header.Get("Content-Type"))
		return false
	}
	r.Header.Set("Content-Type", "application/json")
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // a recorder in a test has none to set
	most := int64(maxBody)
	if r.URL.Path == BasePath+"/apply" {
		most = maxApplyBytes
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	_ = rc.SetReadDeadline(time.Time{})
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		writeFailure(w, http.StatusRequestEntityTooLarge, "body: is larger than %d bytes", most)
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		writeFailure(w, http.StatusRequestTimeout, "body: did not arrive within %v", bodyTimeout)
	case err != nil:
		writeFailure(w, http.StatusBadRequest, "body: cannot be read: %v", err)
	case len(bytes.TrimSpace(body)) == 0:
		writeFailure(w, http.StatusBadRequest, "body: is empty; a JSON object is expected")
	default:
		r.Body = io.NopCloser(bytes.NewReader(body))
		return true
	}
	return false
}

// isJSON takes an absent type for JSON, and so the one that curl -d and HTML
// forms send: seed B never looked.
func isJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch media {
	case "application/json", "text/json", "text/plain", "application/x-www-form-urlencoded":
		return true
	}
	return strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
}
