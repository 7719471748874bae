package api

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// Bounds of a join token's time to live.
const (
	minTokenTTL = time.Second
	maxTokenTTL = 365 * 24 * time.Hour
)

// Token is what POST /tokens answers.
type Token struct {
	Token   string  `json:"token"`
	Expires float64 `json:"expires" doc:"Unix seconds"`
	ID      string  `json:"id" doc:"names the token where it is listed and revoked; of no use to join"`
	Uses    int     `json:"uses,omitempty" doc:"proxies that may join with it; absent for any number"`
}

// TokenState is a join token as GET /tokens lists it, without the token itself.
type TokenState struct {
	ID          string  `json:"id"`
	Namespace   string  `json:"namespace"`
	ServiceName string  `json:"service_name"`
	State       string  `json:"state" enum:"valid,used-up,revoked"`
	Created     float64 `json:"created" doc:"Unix seconds"`
	Expires     float64 `json:"expires" doc:"Unix seconds"`
	Uses        int     `json:"uses,omitempty" doc:"proxies that may join with it; absent for any number"`
	Used        int     `json:"used,omitempty" doc:"proxies that have, where uses is there"`
	Revoked     float64 `json:"revoked,omitempty" doc:"Unix seconds"`
}

func viewToken(t *policy.JoinToken) TokenState {
	v := TokenState{
		ID: t.ID, Namespace: t.Service.Namespace, ServiceName: t.Service.Name, State: "valid",
		Created: float64(t.Created.Unix()), Expires: float64(t.Expires.Unix()), Uses: t.Uses, Used: t.Used,
	}
	switch {
	case !t.Revoked.IsZero():
		v.State, v.Revoked = "revoked", float64(t.Revoked.Unix())
	case t.Uses > 0 && t.Used >= t.Uses:
		v.State = "used-up"
	}
	return v
}

type tokenInput struct {
	Body tokenBody
}

func (s *Server) createToken(ctx context.Context, in *tokenInput) (*output[Token], error) {
	b := &in.Body
	problems := checkName(b.Namespace, b.ServiceName, "service_name")
	var ttl time.Duration
	if b.TTL != nil {
		if low, high := minTokenTTL.Seconds(), maxTokenTTL.Seconds(); !(*b.TTL >= low && *b.TTL <= high) {
			problems = append(problems, policy.Problem{Path: "ttl", Message: fmt.Sprintf("%v s is not in %v..%v s", *b.TTL, low, int64(high))})
		}
		ttl = time.Duration(*b.TTL * float64(time.Second))
	}
	uses := 0
	if b.Uses != nil {
		if uses = *b.Uses; uses < 1 || uses > policy.MaxTokenUses {
			problems = append(problems, policy.Problem{Path: "uses", Message: fmt.Sprintf("%d is not in 1..%d; left out, it is any number", uses, policy.MaxTokenUses)})
		}
	}
	if err := badRequest("body", problems); err != nil {
		return nil, err
	}
	t, text, err := s.Authority.CreateToken(ctx, policy.ServiceName{Namespace: b.Namespace, Name: b.ServiceName}, ttl, uses)
	if err != nil {
		return nil, s.answerFor("make the token", err)
	}
	s.Log.Info("join token made", zap.String("token", t.ID), zap.Stringer("service", t.Service), zap.Time("expires", t.Expires), zap.Int("uses", t.Uses))
	return &output[Token]{Token{Token: text, Expires: float64(t.Expires.UnixNano()) / 1e9, ID: t.ID, Uses: t.Uses}}, nil
}

func (s *Server) listTokens(ctx context.Context, _ *nothing) (*output[[]TokenState], error) {
	tokens, err := s.Authority.Tokens(ctx)
	if err != nil {
		return nil, s.answerFor("list the tokens", err)
	}
	out := make([]TokenState, len(tokens))
	for i := range tokens {
		out[i] = viewToken(&tokens[i])
	}
	return &output[[]TokenState]{out}, nil
}

type tokenPath struct {
	ID string `path:"token_id"`
}

func (s *Server) revokeToken(ctx context.Context, in *tokenPath) (*output[statusBody], error) {
	if err := s.Authority.RevokeToken(ctx, in.ID); err != nil {
		return nil, s.answerFor("revoke the token", err)
	}
	s.Log.Info("join token revoked", zap.String("token", in.ID))
	return &output[statusBody]{statusBody{Status: "token revoked"}}, nil
}
