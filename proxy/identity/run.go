package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Start gets the first certificate: from the cache when it holds a valid one,
// else by joining with the token; or the Source's. While the control plane cannot be reached it
// tries again, waiting 0.2 to 10 s, until ctx ends. What waiting does not heal
// is returned at once: a token that is missing, malformed, expired, another
// service's or refused, and a control plane that is not the one of the token.
func (i *Identity) Start(ctx context.Context) error {
	if i.cfg.Source != nil {
		return i.startFollowing(ctx)
	}
	if h := i.cached(); h != nil {
		i.mu.Lock()
		i.now.Store(h)
		i.mu.Unlock()
		i.cfg.Log.Info("certificate taken from the cache", zap.Time("expires", i.Expiry()))
		return nil
	}
	for n := 0; ; n++ {
		err := i.join(ctx)
		if err == nil {
			i.fresh = true
			i.cfg.Log.Info("joined", zap.String("trust_domain", i.TrustDomain()), zap.Time("expires", i.Expiry()))
			return nil
		}
		err = fmt.Errorf("get certificate of %s: %w", i.cfg.Service, err)
		if errors.As(err, &lasting{}) || ctx.Err() != nil {
			return err
		}
		wait := i.backoff(n, 200*time.Millisecond, 10*time.Second)
		i.cfg.Log.Warn("no certificate yet; trying again", zap.Error(err), zap.Duration("after", wait))
		if !sleep(ctx, wait) {
			return err
		}
	}
}

// Run renews the certificate when half of its life is over (±10 %), until ctx
// ends; it then returns nil. Failures are logged and tried again after 1 to 60
// s; the present certificate stays in use. When renewing fails or the
// certificate has expired it joins again, if the token still holds. With a Source
// it follows that.
func (i *Identity) Run(ctx context.Context) error {
	h := i.now.Load()
	if h == nil {
		return errors.New("renew certificate: Run was called before Start")
	}
	if i.cfg.Source != nil {
		return i.cfg.Source(ctx, i.takeOver)
	}
	next := h.renewAt(i.cfg.Rand())
	if i.fresh { // not of the cache
		next = i.afterNext()
	}
	for failed := 0; i.until(ctx, next); {
		if err := i.again(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			wait := i.backoff(failed, time.Second, time.Minute)
			failed++
			next = i.cfg.Now().Add(wait)
			i.cfg.Log.Warn("certificate not renewed; trying again", zap.Error(err), zap.Time("expires", i.Expiry()), zap.Duration("after", wait))
			continue
		}
		failed = 0
		next = i.afterNext()
		i.cfg.Log.Info("certificate renewed", zap.Time("expires", i.Expiry()))
	}
	return nil
}

// afterNext is when to renew what was just got: when half of what is left is over,
// give or take a tenth of it. Certificates are back-dated, so that half of a very
// short life can be over on arrival.
func (i *Identity) afterNext() time.Time {
	h, now := i.now.Load(), i.cfg.Now()
	if i.strays(h) { // a control plane that has not heard yet has signed it
		return now.Add(time.Duration(float64(strayed) * (0.5 + i.cfg.Rand())))
	}
	left := h.cert.Leaf.NotAfter.Sub(now)
	return now.Add(time.Duration(float64(left) / 2 * (0.9 + 0.2*i.cfg.Rand())))
}

// strayed is the wait before a certificate under another root than the one that signs
// is renewed once more.
const strayed = 2 * time.Second

func (i *Identity) strays(h *held) bool {
	i.mu.Lock()
	signing := i.signing
	i.mu.Unlock()
	return signing != "" && h.root() != signing
}

// again gets the next certificate by the present one, or else by the token: a
// control plane that was set up anew does not know our certificate.
func (i *Identity) again(ctx context.Context) error {
	if i.now.Load().expired(i.cfg.Now()) {
		return i.join(ctx)
	}
	err := i.renew(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if _, noToken := i.credential(); noToken != nil {
		return err // an old token is nothing to complain of while the certificate holds
	}
	return errors.Join(err, i.join(ctx))
}

// until waits for a moment of the wall clock, and tells whether it came before
// ctx ended. Timers stand still while a machine sleeps, so the clock is looked
// at every minute.
func (i *Identity) until(ctx context.Context, at time.Time) bool {
	for {
		left := at.Sub(i.cfg.Now())
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-i.wake:
			timer.Stop()
			return true
		case <-timer.C:
		}
	}
}

// backoff doubles from first to most, and takes off up to half by chance.
func (i *Identity) backoff(n int, first, most time.Duration) time.Duration {
	d := most
	if n < 16 {
		d = min(first<<n, most)
	}
	return time.Duration(float64(d) * (0.5 + 0.5*i.cfg.Rand()))
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
