package policy

import (
	"reflect"
	"testing"
)

// A condition that somebody adds to security rules has paths read, until this test
// and looksAtPath are told what it is about.
func TestWhatRulesLookAtPaths(t *testing.T) {
	other := map[string]bool{
		"ID": true, "SourceNamespace": true, "SourceService": true, "DestinationNamespace": true, "DestinationService": true,
		"AllowedMethods": true, "RequiredJWT": true, "MTLSMode": true, "Action": true, "Sources": true, "Ports": true, "Headers": true, "Claims": true,
	}
	fields := reflect.TypeFor[SecurityRule]()
	for i := range fields.NumField() {
		var in Inbound
		in.Rules = make([]InboundRule, 2)
		f := reflect.ValueOf(&in.Rules[1].SecurityRule).Elem().Field(i)
		switch f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
		default:
			t.Fatalf("%s: a %s", fields.Field(i).Name, f.Kind())
		}
		if name := fields.Field(i).Name; in.LooksAtPath() == other[name] {
			t.Errorf("%s: a rule that has it looks at the path: %v", name, in.LooksAtPath())
		}
	}
	for match, want := range map[string]bool{"": false, "/a": true, "/a*": true, "regex:/a": true} {
		rule := DefaultTrafficRule()
		rule.MatchPath = match
		r, err := NewRouter(&Service{Name: ServiceName{"default", "users"}, Rules: []TrafficRule{rule}})
		if err != nil || r.LooksAtPath() != want {
			t.Errorf("match_path %q: %v, %v", match, r.LooksAtPath(), err)
		}
	}
}
