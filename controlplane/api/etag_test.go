package api

import (
	"slices"
	"strings"
	"testing"
)

// FuzzEntityTags: what is taken for a list of tags is one: written out again it
// is the same list; and nothing makes it panic.
func FuzzEntityTags(f *testing.F) {
	for _, s := range []string{``, `"1"`, `W/"1-2", "3"`, `"a" "b"`, `"`, `"1",`, `*`, `"1",,"2"`, `""`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		list, err := tags("If-Match", header)
		if err != nil {
			return
		}
		var again []string
		for _, tag := range list {
			if strings.Contains(tag, `"`) {
				t.Fatalf("%q gave the tag %q", header, tag)
			}
			again = append(again, `W/"`+tag+`"`)
		}
		same, err := tags("If-Match", strings.Join(again, " , "))
		if err != nil || !slices.Equal(list, same) {
			t.Errorf("%q gave %q, and written out %q, %v", header, list, same, err)
		}
	})
}
