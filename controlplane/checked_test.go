package controlplane

import (
	"slices"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
)

func TestResultsAreJoinedWithoutRepeating(t *testing.T) {
	r := func(at ...float64) (out []api.HealthResult) {
		for _, a := range at {
			out = append(out, api.HealthResult{At: a, Check: "http"})
		}
		return out
	}
	before := r(1, 2, 3)
	for _, c := range []struct {
		after []api.HealthResult
		n     int
		want  []api.HealthResult
	}{
		{nil, 5, r(1, 2, 3)}, {r(2, 3, 4), 5, r(1, 2, 3, 4)}, {r(2, 3, 4), 2, r(3, 4)},
		{r(0.5), 5, r(1, 2, 3, 0.5)}, // made by a clock that was set back: after all the same
	} {
		if got := joined(before, c.after, c.n); !slices.Equal(got, c.want) {
			t.Errorf("with %v, %d of them: %v", c.after, c.n, got)
		}
	}
	if !slices.Equal(before, r(1, 2, 3)) {
		t.Errorf("what was joined is now %v", before)
	}
	if got := kept([]byte("no JSON")); got != nil {
		t.Errorf("nonsense is %v", got)
	}
}
