package proxy

import (
	"context"
	"errors"
	"reflect"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/jwt"
	"github.com/weir-mesh/weir/proxy/loop"
)

// keysWait is how long a request waits for keys where its token is signed with
// one that is not known yet: an issuer that has turned its keys refuses nobody.
const keysWait = 2 * time.Second

// verify checks a request's token and counts the outcome.
func (p *Proxy) verify(l *loop.Loop, g *guard, header string, now time.Time) (jwt.Claims, error) {
	claims, err := g.tokens.Verify(header, now)
	var unknown *jwt.UnknownKeyError
	if errors.As(err, &unknown) {
		claims, err = p.verifyAnew(l, g, header, now, err)
	}
	p.metrics.Token(tokenOutcome(err))
	return claims, err
}

// tokenOutcome is what became of a token, in one word for the metrics.
func tokenOutcome(err error) string {
	var unknown *jwt.UnknownKeyError
	switch {
	case err == nil:
		return "valid"
	case errors.Is(err, jwt.ErrMissing):
		return "missing"
	case errors.Is(err, jwt.ErrExpired):
		return "expired"
	case errors.As(err, &unknown):
		return "unknown-key"
	}
	return "invalid"
}

// verifyAnew waits for newer keys. It is apart from verify so that what it needs is
// on the heap only here.
func (p *Proxy) verifyAnew(l *loop.Loop, g *guard, header string, now time.Time, err error) (jwt.Claims, error) {
	again := false
	l.Block(func() {
		ctx, cancel := context.WithTimeout(p.hard, keysWait)
		defer cancel()
		again = g.tokens.Refresh(ctx, now, err)
	})
	if !again {
		return jwt.Claims{}, err
	}
	return g.tokens.Verify(header, now)
}

// tokensFor gives the verifier as it is, if what it was made of stays the same.
func (g *guard) tokensFor(in *policy.Inbound) *jwt.Verifier {
	was := g.Settings()
	if was.JWTSecret == in.JWTSecret && reflect.DeepEqual(was.JWT, in.JWT) {
		return g.tokens
	}
	return nil
}

// newTokens makes a verifier, which keeps the keys that the old one knew.
func (p *Proxy) newTokens(in *policy.Inbound, old *guard) *jwt.Verifier {
	cfg := jwt.Config{Hooks: jwt.Hooks{Fetched: p.keysFetched}, Leeway: time.Duration(in.JWT.Leeway * float64(time.Second))}
	if in.JWT.Leeway == 0 {
		cfg.Leeway = -1
	}
	for _, is := range in.JWT.Issuers {
		cfg.Issuers = append(cfg.Issuers, jwt.Issuer{
			Name: is.Issuer, Audiences: is.Audiences, Algorithms: is.Algorithms, NoExpiry: is.AllowNoExpiry, Source: jwt.Source{
				SecretFile: is.SecretFile, SecretEnv: is.SecretEnv, KeysFile: is.JWKSFile, KeysURL: is.JWKSURL,
				Every: time.Duration(is.Refresh * float64(time.Second)),
			},
		})
	}
	if in.JWTSecret != "" {
		cfg.Issuers = append(cfg.Issuers, jwt.Issuer{NoExpiry: true, Source: jwt.Source{Secret: in.JWTSecret}})
	}
	var known *jwt.Verifier
	if old != nil {
		known = old.tokens
	}
	return jwt.NewVerifier(cfg, known)
}

func (p *Proxy) keysFetched(s jwt.Source, err error) {
	p.metrics.KeysFetched(s.String(), err == nil, time.Now())
	if err != nil {
		p.log.Warn("the keys that tokens are verified with cannot be fetched; those that are known stay in force",
			zap.Stringer("source", s), zap.Error(err))
	}
}

// tokensChanged has keepTokens look which keys are to be kept.
func (p *Proxy) tokensChanged() {
	select {
	case p.issuers <- struct{}{}:
	default:
	}
}

// keepTokens fetches the keys of those whose tokens are taken, until ctx ends.
func (p *Proxy) keepTokens(ctx context.Context) {
	var kept *jwt.Verifier
	stop := func() {}
	for {
		if now := p.guard.Load().tokens; now != kept {
			stop()
			kept, stop = now, func() {}
			if now.Fetches() {
				stop = keepRunning(ctx, now)
			}
		}
		select {
		case <-ctx.Done():
			stop()
			return
		case <-p.issuers:
		}
	}
}

// keepRunning runs a verifier until stop, which waits for its end.
func keepRunning(ctx context.Context, v *jwt.Verifier) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); v.Run(ctx) }()
	return func() { cancel(); <-done }
}
