package telemetry

import (
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The library's own histogram is the definition: what is shown of the same durations is the same, bounds included.
func TestTheHistogramIsAsTheLibraryMakesIt(t *testing.T) {
	r, theirs := New(Options{NoRuntime: true}), prometheus.NewRegistry()
	var upTo []float64
	durations := []time.Duration{0, 1, 31 * time.Second, time.Hour}
	for _, b := range bounds {
		upTo = append(upTo, b.Seconds())
		durations = append(durations, b-1, b, b+1)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		durations = append(durations, time.Duration(rnd.ExpFloat64()*float64(100*time.Millisecond)).Round(time.Microsecond))
	}
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weir_request_duration_seconds", Buckets: upTo}, []string{"direction", "namespace", "service"})
	theirs.MustRegister(h)
	s := r.Service(Outbound, "cart", "shop")
	for _, d := range durations {
		s.Done(200, d, 0, 0)
		h.WithLabelValues("outbound", "shop", "cart").Observe(d.Seconds())
	}
	w := httptest.NewRecorder()
	promhttp.HandlerFor(theirs, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	want, got := histogramLines(w.Body.String()), histogramLines(scrape(t, r).Body.String())
	if len(want) != len(bounds)+2 || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// histogramLines are the buckets and the count; sums differ in the last digits of floating point.
func histogramLines(text string) (lines []string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "weir_request_duration_seconds_bucket") || strings.HasPrefix(line, "weir_request_duration_seconds_count") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestEveryCodeHasAPlace(t *testing.T) {
	if len(codes.labels) >= maxCodes {
		t.Fatalf("%d labels of codes are no fewer than %d: some have no place", len(codes.labels), maxCodes)
	}
	for code := -5; code < 2000; code++ {
		if got, want := codes.labels[codes.place(code)], codeLabel(code); got != want {
			t.Errorf("%d is counted as %s, want %s", code, got, want)
		}
	}
}

// A service that has counted nothing shows nothing but its histogram, as one that the library keeps would.
func TestWhatHasNotCountedMakesNoSeries(t *testing.T) {
	r := New(Options{NoRuntime: true})
	r.Service(Outbound, "cart", "shop")
	for _, line := range weirLines(t, r) {
		if strings.Contains(line, `service="cart"`) && !strings.HasPrefix(line, "weir_request_duration_seconds") {
			t.Errorf("shown: %s", line)
		}
	}
}
