package proxy

import (
	"strings"
	"testing"
)

func TestWhatATraceparentIs(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for s, want := range map[string]bool{
		good: true, "01" + good[2:]: true, "01" + good[2:] + "-later": true,
		"": false, good[:54]: false, good + "-x": false, "01" + good[2:] + "x": false, "ff" + good[2:]: false,
		"00-" + noTrace + good[35:]: false, good[:36] + noTrace[:16] + "-01": false, strings.ToUpper(good): false,
		good[:10] + `"` + good[11:]: false, strings.Replace(good, "-", "_", 1): false, good[:53] + "zz": false,
	} {
		if isParent(s) != want {
			t.Errorf("%q is one: %v", s, !want)
		}
	}
}
