package store

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
)

func TestOfThoseThatAskForATaskOneRunsIt(t *testing.T) {
	a := open(t)
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	var leading atomic.Int32
	type turn struct {
		who  string
		stop context.CancelFunc
	}
	turns := make(chan turn)
	ended := make(chan error, 2)
	for who, s := range map[string]*Store{"a": a, "b": b} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			ended <- s.Lead(ctx, "task", who, func(ctx context.Context) error {
				if n := leading.Add(1); n != 1 {
					t.Errorf("%d lead", n)
				}
				turns <- turn{who, cancel}
				<-ctx.Done()
				leading.Add(-1)
				return ctx.Err()
			})
		}()
	}
	first := <-turns
	first.stop()
	second := <-turns
	if second.who == first.who {
		t.Errorf("%s led twice", first.who)
	}
	second.stop()
	must(t, <-ended)
	must(t, <-ended)
}

func TestWhatIsLedAndEndsIsNotRunAgain(t *testing.T) {
	broken := errors.New("broken")
	for name, s := range map[string]*Store{"cluster": open(t), "embedded": run(t, Config{DataDir: dataDir(t)})} {
		if err := s.Lead(t.Context(), "task", name, func(context.Context) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("%s: Lead gives %v", name, err)
		}
	}
}
