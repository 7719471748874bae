package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

type explainBody struct {
	From    string              `json:"from" doc:"who calls: name or namespace/name" example:"default/frontend"`
	To      string              `json:"to" doc:"which service" example:"default/user-service"`
	Port    *int                `json:"port,omitempty" required:"false" minimum:"1" maximum:"65535" doc:"left out, by the service's name alone"`
	Method  *string             `json:"method,omitempty" required:"false" doc:"left out, GET; empty, a connection that is not HTTP" example:"GET"`
	Path    *string             `json:"path,omitempty" required:"false" doc:"left out, /" example:"/users?page=2"`
	Host    *string             `json:"host,omitempty" required:"false" doc:"left out, the service's name"`
	Headers map[string][]string `json:"headers,omitempty" required:"false" nullable:"true"`
	JWT     *string             `json:"jwt,omitempty" required:"false" doc:"a token, whose signature is not checked here, or its claims as a JSON object"`
}

// Call is what Client.Explain asks about.
type Call struct {
	From, To   string // name or namespace/name
	Port       int
	Method     string // "" is a connection that is not HTTP
	Path, Host string
	Headers    map[string][]string
	JWT        string
}

type explainInput struct{ Body explainBody }

// explain answers what would become of a call. It changes nothing.
func (s *Server) explain(_ context.Context, in *explainInput) (*output[*policy.Explanation], error) {
	q, problems := in.Body.question(s.Now())
	if err := badRequest("body", problems); err != nil {
		return nil, err
	}
	e, err := s.Mesh.Explain(q)
	if err != nil {
		return nil, s.answerFor("explain", err)
	}
	return &output[*policy.Explanation]{e}, nil
}

func (b *explainBody) question(now time.Time) (*policy.Question, policy.Problems) {
	q := &policy.Question{Method: http.MethodGet, Path: "/", Header: map[string][]string{}, Token: policy.TokenMissing}
	var p policy.Problems
	for _, f := range []struct {
		path, text string
		to         *policy.ServiceName
	}{{"from", b.From, &q.From}, {"to", b.To, &q.To}} {
		name, err := policy.ParseServiceName(f.text, "default")
		if *f.to = name; err != nil {
			p = append(p, policy.Problem{Path: f.path, Message: err.Error()})
		}
	}
	if b.Port != nil {
		q.Port = uint16(*b.Port)
	}
	override(&q.Method, b.Method)
	override(&q.Path, b.Path)
	override(&q.Host, b.Host)
	if !strings.HasPrefix(q.Path, "/") && q.Path != "*" {
		p = append(p, policy.Problem{Path: "path", Message: show(q.Path) + " does not start with /"})
	}
	for name, values := range b.Headers {
		name = strings.ToLower(name)
		q.Header[name] = append(q.Header[name], values...)
	}
	if b.JWT != nil && *b.JWT != "" {
		claims, err := readClaims(*b.JWT)
		if err != nil {
			p = append(p, policy.Problem{Path: "jwt", Message: err.Error()})
		}
		q.Claims, q.Token = claims, ""
		if !inTime(claims, now) {
			q.Claims, q.Token = nil, policy.TokenInvalid
		}
	}
	return q, p
}

// readClaims takes the claims out of a token (RFC 7519 section 3), or takes them
// as they are.
func readClaims(text string) (claims map[string]any, err error) {
	raw := []byte(strings.TrimSpace(text))
	if len(raw) > 0 && raw[0] != '{' {
		parts := strings.Split(string(raw), ".")
		if len(parts) != 3 {
			return nil, fmt.Errorf("is neither a token, of three parts with dots between, nor a JSON object")
		}
		if raw, err = base64.RawURLEncoding.DecodeString(parts[1]); err != nil {
			return nil, fmt.Errorf("the token's claims are not base64url: %w", err)
		}
	}
	if err := json.Unmarshal(raw, &claims); err != nil || claims == nil {
		return nil, fmt.Errorf("the claims are not a JSON object")
	}
	return claims, nil
}

// inTime tells whether a token holds now, as far as its claims say.
func inTime(claims map[string]any, now time.Time) bool {
	expires, ends := claims["exp"].(float64)
	begins, later := claims["nbf"].(float64)
	at := float64(now.Unix())
	return (!ends || at < expires) && (!later || at >= begins)
}
