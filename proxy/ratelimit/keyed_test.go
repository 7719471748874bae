package ratelimit

import (
	"fmt"
	"testing"
	"time"
)

func TestKeysAreCountedApart(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 1, Window: time.Minute}, 0, noon)
	for _, key := range []string{"a", "b", ""} {
		if !k.Allow(key, noon).OK || k.Allow(key, noon).OK {
			t.Errorf("key %q", key)
		}
	}
	if k.Len() != 3 || k.Policy().Limit != 1 {
		t.Errorf("%d keys", k.Len())
	}
}

func TestTheLeastRecentlyUsedKeyIsForgotten(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 1, Window: time.Minute}, 2, noon)
	k.Allow("a", noon)
	k.Allow("b", noon)
	k.Allow("a", noon) // refused, but used
	k.Allow("c", noon) // b goes
	if k.Allow("a", noon).OK {
		t.Error("a was forgotten")
	}
	if !k.Allow("b", noon).OK {
		t.Error("b was not forgotten")
	}
	if k.Len() != 2 {
		t.Errorf("%d keys", k.Len())
	}
}

// An entry that is used again for another key must not bring its count with it.
func TestAForgottenKeysCountIsGone(t *testing.T) {
	for _, p := range []Policy{{Limit: 3, Window: time.Minute}, {Limit: 2000, Window: time.Minute}, {Limit: 3, Window: time.Minute, Burst: 3}} {
		k, _ := NewKeyed(p, 1, noon)
		for _, key := range []string{"a", "b", "", "a", ""} {
			if d := k.Allow(key, noon); !d.OK || d.Remaining != d.Limit-1 {
				t.Errorf("%+v: first request of %q: %+v", p, key, d)
			}
			k.Allow(key, noon)
		}
	}
}

func TestManyKeysAreBounded(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 5, Window: time.Minute}, 1024, noon)
	for i := range 20_000 {
		k.Allow(fmt.Sprint("key ", i), noon)
	}
	if n := k.Len(); n > 1024 || n < 1000 {
		t.Errorf("%d keys", n)
	}
}

// A key cut from a request buffer must not change when the buffer is used again.
func TestKeysAreCopied(t *testing.T) {
	k, _ := NewKeyed(Policy{Limit: 1, Window: time.Minute}, 0, noon)
	buf := []byte("alice")
	k.Allow(string(buf), noon)
	copy(buf, "mallo")
	if k.Allow("alice", noon).OK {
		t.Error("alice was lost")
	}
}
