package weir_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentsNameTestsThatExist holds for those that say which test shows what.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	known := map[string]bool{}
	names := map[string]bool{} // of sub-tests, too: they stand in the sources as text
	function, word := regexp.MustCompile(`(?m)^func (Test\w+)\(`), regexp.MustCompile(`"(\w+)"`)
	for _, s := range sources(t) {
		if !s.test {
			continue
		}
		b, err := os.ReadFile(s.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllStringSubmatch(string(b), -1) {
			known[m[1]] = true
		}
		for _, m := range word.FindAllStringSubmatch(string(b), -1) {
			names[m[1]] = true
		}
	}
	named := regexp.MustCompile("`(Test\\w+)(/\\w+)?`")
	for _, file := range []string{"docs/SECURITY.md", "docs/PRIVILEGES.md", "docs/INTERCEPTION.md"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all := named.FindAllStringSubmatch(string(b), -1)
		if len(all) == 0 {
			t.Errorf("%s names no test", file)
		}
		for _, m := range all {
			if sub := strings.TrimPrefix(m[2], "/"); !known[m[1]] || sub != "" && !names[sub] {
				t.Errorf("%s names %s, which there is not", file, m[0])
			}
		}
	}
}
