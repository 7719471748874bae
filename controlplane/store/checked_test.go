package store

import (
	"errors"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

// The record of a turn is stored with it, is known to every process, and outlives
// the endpoint only until it is looked for.
func TestWhatWasCheckedIsKeptWithTheTurn(t *testing.T) {
	a, ctx := open(t), t.Context()
	b := open(t, func(c *Config) { c.Prefix = a.cfg.Prefix })
	must(t, a.PutEndpoint(ctx, endpoint("cart", "stays")))
	must(t, a.PutEndpoint(ctx, endpoint("cart", "goes")))
	for _, id := range []string{"stays", "goes"} {
		must(t, a.Turn(ctx, shop("cart"), id, policy.Unhealthy, []byte("why "+id)))
		// It is so already: no turn, and the reason stays.
		must(t, a.Turn(ctx, shop("cart"), id, policy.Unhealthy, []byte("again")))
	}
	want := func(id, record string) {
		t.Helper()
		if got, err := b.Checked(ctx, shop("cart"), id); err != nil || string(got) != record {
			t.Errorf("of %s is kept %q, %v; want %q", id, got, err, record)
		}
	}
	want("stays", "why stays")
	want("goes", "why goes")
	want("never", "")
	if e := a.Endpoints(shop("cart")); e[0].Status != policy.Unhealthy {
		t.Errorf("the status is %s", e[0].Status)
	}
	must(t, a.DeleteEndpoint(ctx, "shop", "cart", "goes"))
	if err := a.Turn(ctx, shop("cart"), "goes", policy.Healthy, []byte("late")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a turn of what is gone gives %v", err)
	}
	must(t, b.ForgetChecked(ctx))
	want("stays", "why stays")
	want("goes", "")
}
