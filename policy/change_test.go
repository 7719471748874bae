package policy

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestADifferenceComesBackFromJSONAsItWas(t *testing.T) {
	e, r, set := DefaultEndpoint(), DefaultTrafficRule(), DefaultSettings()
	s := SecurityRule{ID: "s", AllowedMethods: []string{"GET"}}
	for _, d := range []Difference{
		Compare(Ref{KindEndpoint, "a", "b", "c"}, nil, &Resource{Endpoint: &e}),
		Compare(Ref{KindTrafficRule, "a", "b", "c"}, &Resource{Traffic: &r}, nil),
		Compare(Ref{Kind: KindSecurityRule, ID: "s"}, &Resource{Security: &s}, &Resource{Security: &s}),
		Compare(Ref{Kind: KindConfig}, nil, &Resource{Settings: &set}),
	} {
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var got Difference
		if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("%s came back as %+v, %v", b, got, err)
		}
	}
	for _, bad := range []string{`{"kind":"nonsense","after":{}}`, `{"kind":"endpoint","after":[]}`, `[]`} {
		if err := json.Unmarshal([]byte(bad), new(Difference)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestWhatNobodyWroteMakesNoDifference(t *testing.T) {
	e := DefaultEndpoint()
	seen := e
	seen.Status, seen.LastSeen, seen.Labels = Unhealthy, 7, nil
	ref := Ref{KindEndpoint, "a", "b", "c"}
	if d := Compare(ref, &Resource{Endpoint: &e}, &Resource{Endpoint: &seen}); d.Action != Unchanged {
		t.Errorf("a check made it %s", d.Action)
	}
	seen.Weight++
	if d := Compare(ref, &Resource{Endpoint: &e}, &Resource{Endpoint: &seen}); d.Action != Changed {
		t.Errorf("a weight made it %s", d.Action)
	}
	if d := Compare(Ref{Kind: KindConfig}, nil, nil); d.Action != Unchanged || d.After == nil {
		t.Errorf("settings that were never set: %+v", d)
	}
}

func TestASecretIsHiddenAndItsChangeIsNot(t *testing.T) {
	with := func(secret string) *Resource {
		set := DefaultSettings()
		set.Security.JWTSecret = secret
		return &Resource{Settings: &set}
	}
	for _, c := range []struct{ before, after, shownBefore, shownAfter string }{
		{"", "", "", ""},
		{"", "hush", "", "(hidden)"},
		{"hush", "hush", "(hidden)", "(hidden)"},
		{"hush", "other", "(hidden)", "(hidden, another)"},
		{"hush", "", "(hidden)", ""},
	} {
		before, after := with(c.before), with(c.after)
		d := Compare(Ref{Kind: KindConfig}, before, after).WithoutSecrets()
		if got := d.Before.Settings.Security.JWTSecret; got != c.shownBefore {
			t.Errorf("%q before is shown as %q", c.before, got)
		}
		if got := d.After.Settings.Security.JWTSecret; got != c.shownAfter {
			t.Errorf("%q after %q is shown as %q", c.after, c.before, got)
		}
		if before.Settings.Security.JWTSecret != c.before || after.Settings.Security.JWTSecret != c.after {
			t.Error("what is stored was changed")
		}
	}
}

func TestAnEditIsMadeOfWhatIsThere(t *testing.T) {
	rule, other := DefaultTrafficRule(), DefaultTrafficRule()
	other.Weight = 7
	ref := Ref{KindTrafficRule, "shop", "cart", "r"}
	have := Stored{Value: &Resource{Traffic: &rule}, Version: 5}
	for name, c := range map[string]struct {
		edit Edit
		have Stored
		want error
	}{
		"add":                 {Edit{Ref: ref, To: &Resource{Traffic: &other}, New: true}, Stored{}, nil},
		"add what exists":     {Edit{Ref: ref, To: &Resource{Traffic: &other}, New: true}, have, ErrExists},
		"replace":             {Edit{Ref: ref, To: &Resource{Traffic: &other}}, have, nil},
		"replace its version": {Edit{Ref: ref, To: &Resource{Traffic: &other}, If: Condition{Versions: []int64{5}}}, have, nil},
		"replace another":     {Edit{Ref: ref, To: &Resource{Traffic: &other}, If: Condition{Versions: []int64{4}}}, have, ErrStale},
		"remove":              {Edit{Ref: ref}, have, nil},
		"remove nothing":      {Edit{Ref: ref}, Stored{}, ErrNotFound},
	} {
		if _, err := c.edit.Make(c.have); !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), "traffic rule r of shop/cart") {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	var p Problems
	if _, err := (&Edit{Ref: Ref{Kind: KindConfig}, Patch: []byte(`{"egres":"deny"}`)}).Make(Stored{}); !errors.As(err, &p) {
		t.Errorf("a wrong patch: %v", err)
	}
	made, err := (&Edit{Ref: Ref{Kind: KindConfig}, Patch: []byte(`{"egress":"deny"}`)}).Make(Stored{})
	if err != nil || made.Settings.Egress != "deny" || made.Settings.MTLSMode != Strict {
		t.Errorf("a patch of the defaults: %+v, %v", made, err)
	}
	for ref, want := range map[Ref]string{
		{KindTrafficRule, "Bad", "cart", "r"}: "namespace", {KindEndpoint, "a", "", "e"}: "service", {Kind: KindSecurityRule, ID: "a/b"}: "id", {Kind: "x"}: "kind",
	} {
		if p := ref.Validate(); len(p) == 0 || p[0].Path != want {
			t.Errorf("%+v: %v", ref, p)
		}
	}
}
