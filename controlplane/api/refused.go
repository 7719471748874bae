package api

import (
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Why a call is refused before it is looked at.
const (
	noToken          = "missing_token"
	wrongToken       = "wrong_token"
	proxyCertificate = "proxy_certificate"
	otherSite        = "other_site"
)

// quiet is how long a reason is not logged again: who tries tokens is not to
// fill the disk. What was left out is counted in the next line.
const quiet = 10 * time.Second

// refusals counts the calls that were refused.
type refusals struct {
	mu     sync.Mutex // guards what follows
	counts map[string]uint64
	logged map[string]time.Time
	silent map[string]int
}

// count notes a refused call, and logs it unless one like it was logged just now.
func (c *refusals) count(s *Server, r *http.Request, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts, c.logged, c.silent = map[string]uint64{}, map[string]time.Time{}, map[string]int{}
	}
	c.counts[reason]++
	now := s.Now()
	if last, ok := c.logged[reason]; ok && now.Sub(last) < quiet {
		c.silent[reason]++
		return
	}
	s.Log.Warn("an API call was refused", zap.String("reason", reason), zap.String("peer", r.RemoteAddr), zap.String("method", r.Method),
		zap.String("path", shorten(r.URL.Path)), zap.String("certificate", peerName(r)), zap.Int("refused_since_last_line", c.silent[reason]))
	c.logged[reason], c.silent[reason] = now, 0
}

func (c *refusals) total() RefusedCalls {
	c.mu.Lock()
	defer c.mu.Unlock()
	return RefusedCalls{
		MissingToken: c.counts[noToken], WrongToken: c.counts[wrongToken],
		ProxyCertificate: c.counts[proxyCertificate], OtherSite: c.counts[otherSite],
	}
}

// peerName is what the client's certificate, if it showed one, says it is.
func peerName(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	leaf := r.TLS.PeerCertificates[0]
	if len(leaf.URIs) > 0 {
		return shorten(leaf.URIs[0].String())
	}
	return shorten(leaf.Subject.CommonName)
}

// unauthorized answers as RFC 6750 section 3.1 asks: no error code for a
// request that showed no token.
func (s *Server) unauthorized(w http.ResponseWriter, r *http.Request) {
	header, reason, text := `Bearer realm="weir"`, noToken, "the admin token is missing: send Authorization: Bearer <token>"
	switch name := peerName(r); {
	case r.Header.Get("Authorization") != "":
		header += `, error="invalid_token"`
		reason, text = wrongToken, "the admin token is wrong"
	case name != "":
		reason, text = proxyCertificate, "the certificate of "+name+" opens nothing here: send Authorization: Bearer <admin token>"
	}
	s.refused.count(s, r, reason)
	w.Header().Set("WWW-Authenticate", header)
	writeFailure(w, http.StatusUnauthorized, "%s", text)
}
