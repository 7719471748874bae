package h1

import "testing"

func TestAFieldIsDroppedInBothSpellings(t *testing.T) {
	var e edits
	e.change("X-Source-Service", "front", editSet)
	e.change("X-Own", "1", editAdd)
	for name, want := range map[string]bool{
		"x-source-service": true, "X_Source_Service": true, "x-SOURCE_service": true,
		"x-source-servicf": false, "x.source.service": false, "x-own": false, "x_own": false, "x": false,
	} {
		if e.drops([]byte(name)) != want {
			t.Errorf("%s is dropped: %v", name, !want)
		}
	}
}
