package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestRevocationsAreInTheStateAndTold(t *testing.T) {
	s := open(t)
	w := s.Watch()
	defer w.Close()
	if c, err := w.Next(t.Context()); err != nil || !c.Revoked || !c.Roots {
		t.Fatalf("the first is not everything: %+v, %v", c, err)
	}
	r := policy.Revocation{Identity: shop("cart"), Since: 1, Until: 2, Reason: "why"}
	must(t, s.Revoke(t.Context(), r))
	must(t, s.Revoke(t.Context(), policy.Revocation{Serial: "1f", Since: 1, Until: 9}))
	r.Until = 5 // once more is in the place of the first
	must(t, s.Revoke(t.Context(), r))
	if got := s.State().Revoked; len(got) != 2 || got[0] != r || got[1].Serial != "1f" {
		t.Fatalf("revoked are %+v", got)
	}
	if c, err := w.Next(t.Context()); err != nil || !c.Revoked || c.Roots {
		t.Errorf("told is %+v, %v", c, err)
	}
	other := run(t, s.cfg) // another process reads the same
	if got := other.State().Revoked; len(got) != 2 || got[0] != r {
		t.Errorf("another reads %+v", got)
	}
	must(t, s.Lift(t.Context(), r.ID()))
	if err := s.Lift(t.Context(), r.ID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("once more: %v", err)
	}
	for _, id := range []string{"", "a/b", "identity.weir-system.control"} {
		if err := s.Lift(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if got := s.State().Revoked; len(got) != 1 || got[0].Serial != "1f" {
		t.Errorf("left are %+v", got)
	}
}

func TestRevocationsAreBoundedAndChecked(t *testing.T) {
	s := open(t)
	var p policy.Problems
	for _, bad := range []policy.Revocation{{}, {Serial: "1f", Identity: shop("cart")}, {Serial: "XYZ"}, {Serial: "01"}, {Identity: policy.ControlPlane}, {Identity: policy.ServiceName{Namespace: "a b", Name: "c"}}} {
		if err := s.Revoke(t.Context(), bad); !errors.As(err, &p) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	full := *s.State()
	for i := range policy.MaxRevocations {
		full.Revoked = append(full.Revoked, policy.Revocation{Serial: fmt.Sprintf("%x", i+16), Until: 1})
	}
	s.current.Store(&full)
	if err := s.Revoke(t.Context(), policy.Revocation{Serial: "f"}); !errors.As(err, &p) {
		t.Errorf("one too many: %v", err)
	}
	if err := s.Revoke(t.Context(), policy.Revocation{Serial: "10"}); err != nil {
		t.Errorf("one that is there already: %v", err)
	}
}

// Of two that change the roots at once, one is told that the other was faster.
func TestRootsChangeFromWhatWasRead(t *testing.T) {
	s := open(t)
	read := s.State().Roots
	read.Made = 1
	must(t, s.SetRoots(t.Context(), read))
	if err := s.SetRoots(t.Context(), read); !errors.Is(err, ErrConflict) {
		t.Errorf("the second: %v", err)
	}
	next := s.State().Roots.Clone()
	if next.Made != 1 || next.Revision == 0 {
		t.Fatalf("%+v", next)
	}
	next.Rotation = &policy.Rotation{Number: 1, Stage: policy.StageTrust, Old: []string{"ab"}, New: "cd"}
	must(t, s.SetRoots(t.Context(), next))
	if got := run(t, s.cfg).State().Roots; !got.Rotation.Running() || got.Rotation.New != "cd" {
		t.Errorf("another reads %+v", got)
	}
}

func TestASecretIsReplacedOnlyWhileItIsWhatWasRead(t *testing.T) {
	s := open(t)
	if v, err := s.Get(t.Context(), "x"); v != nil || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	_, err := s.GetOrCreate(context.Background(), "x", func() ([]byte, error) { return []byte("one"), nil })
	must(t, err)
	must(t, s.Replace(t.Context(), "x", []byte("one"), []byte("two")))
	if err := s.Replace(t.Context(), "x", []byte("one"), []byte("three")); !errors.Is(err, ErrConflict) {
		t.Errorf("from what it was: %v", err)
	}
	if v, err := s.Get(t.Context(), "x"); !bytes.Equal(v, []byte("two")) || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}
