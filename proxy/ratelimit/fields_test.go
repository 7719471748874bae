package ratelimit

import (
	"regexp"
	"testing"
	"time"
)

func TestFields(t *testing.T) {
	d := Decision{Limit: 100, Remaining: 50, Reset: 29*time.Second + 1, RetryAfter: 29*time.Second + 1}
	for _, c := range []struct {
		name      string
		got, want string
	}{
		{"policy", string(AppendPolicy(nil, "default", Policy{Limit: 100, Window: time.Minute})), `"default";q=100;w=60`},
		{"a window below a second", string(AppendPolicy(nil, "p", Policy{Limit: 1, Window: time.Millisecond})), `"p";q=1;w=1`},
		{"limit", string(AppendRateLimit(nil, "default", d)), `"default";r=50;t=30`},
		{"retry", string(AppendRetryAfter(nil, d)), "30"},
		{"retry at least 1", string(AppendRetryAfter(nil, Decision{})), "1"},
		{"appended", string(AppendRetryAfter([]byte("Retry-After: "), d)), "Retry-After: 30"},
		{"a name that needs care", string(AppendRateLimit(nil, "a\"b\\c\r\nü", Decision{})), `"a\"b\\c____";r=0;t=0`},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.name, c.got, c.want)
		}
	}
}

var structuredField = regexp.MustCompile(`^"([ !#-\[\]-~]|\\["\\])*";r=\d+;t=\d+$`)

// Whatever the name, the field is well formed: it goes into a header.
func FuzzFieldName(f *testing.F) {
	f.Add("default")
	f.Add("\"\\\r\n\x00\xff")
	f.Fuzz(func(t *testing.T, name string) {
		if got := AppendRateLimit(nil, name, Decision{}); !structuredField.Match(got) {
			t.Errorf("%q", got)
		}
	})
}

// Any history of steps, as bytes: the window does what the list does, and its figures are in range.
func FuzzHistory(f *testing.F) {
	f.Add(uint8(3), []byte{0, 0, 0, 0, 255, 0, 1, 100})
	f.Fuzz(func(t *testing.T, limit uint8, steps []byte) {
		p := Policy{Limit: 1 + int(limit), Window: 300 * time.Millisecond}
		l, list, now := mustNew(t, p), &seedList{Policy: p}, noon
		for _, s := range steps {
			now = now.Add(time.Duration(s) * time.Millisecond)
			d := l.Allow(now)
			ok, retry, used := list.allow(now)
			if d.OK != ok || d.RetryAfter != retry || d.Remaining != p.Limit-used || d.Reset <= 0 || d.Reset > p.Window {
				t.Fatalf("%+v, want %v %v %d", d, ok, retry, p.Limit-used)
			}
		}
	})
}
