package h2

import (
	"fmt"
	"strings"
	"testing"
)

// Names are remembered by their address, of which several share a place, and views of
// memory that is used again change under it: neither may mix them up.
func TestNamesAreNotMixedUp(t *testing.T) {
	var n names
	same := make([]byte, 6)
	for i := range 1000 {
		copy(same, fmt.Sprintf("X-%04d", i))
		for _, name := range []string{view(same), fmt.Sprint("X-Other-", i%300), "Content-Type", "X-A"} {
			f, ok := n.check(name)
			if !ok || f.Name != strings.ToLower(name) || (f.Class == fieldContentType) != (name == "Content-Type") {
				t.Fatalf("%s: %v %v", name, f, ok)
			}
		}
	}
	for _, bad := range []string{"", "x y", "x\n", ":path", "é"} {
		if f, ok := n.check(bad); ok {
			t.Errorf("%q is good: %v", bad, f)
		}
	}
}

func TestAFieldIsDroppedInBothSpellings(t *testing.T) {
	e := edits{names: new(names)}
	e.change("X-Source-Service", "front", editSet)
	e.change("X-Own", "1", editAdd)
	for name, want := range map[string]bool{
		"x-source-service": true, "x_source_service": true, "x-source_service": true,
		"x-source-servicf": false, "x.source.service": false, "x-own": false, "x_own": false, "x": false,
	} {
		if e.drops(name) != want {
			t.Errorf("%s is dropped: %v", name, !want)
		}
	}
}
