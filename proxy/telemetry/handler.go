package telemetry

import (
	"encoding/json"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// summary is the JSON form: its keys are a contract.
type summary struct {
	InboundRequests        uint64  `json:"inbound_requests"`
	OutboundRequests       uint64  `json:"outbound_requests"`
	RequestDurationTotal   float64 `json:"request_duration_total"`
	RequestErrors          uint64  `json:"request_errors"`
	CircuitBreakerOpens    uint64  `json:"circuit_breaker_opens"`
	AverageRequestDuration float64 `json:"average_request_duration"` // seconds per inbound request
}

func (t Totals) summary() summary {
	s := summary{
		InboundRequests:      t.InboundRequests,
		OutboundRequests:     t.OutboundRequests,
		RequestDurationTotal: t.DurationTotal,
		RequestErrors:        t.Errors,
		CircuitBreakerOpens:  t.CircuitOpens,
	}
	if t.InboundRequests > 0 {
		s.AverageRequestDuration = t.DurationTotal / float64(t.InboundRequests)
	}
	return s
}

// Handler serves the metrics: Prometheus text (or OpenMetrics), and a short JSON summary to clients that ask for application/json.
func (r *Registry) Handler() http.Handler {
	text := promhttp.HandlerFor(r.prom, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Add("Vary", "Accept")
		if !wantsJSON(req.Header.Values("Accept")) {
			text.ServeHTTP(w, req)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// An error here is the client's going away: there is nobody to tell.
		_ = json.NewEncoder(w).Encode(r.Totals().summary())
	})
}

// wantsJSON says whether application/json is named and no text form is liked better. A wildcard alone means text: it is what curl sends.
func wantsJSON(accept []string) bool {
	liked, text := 0.0, 0.0
	for _, one := range strings.Split(strings.Join(accept, ","), ",") {
		media, params, err := mime.ParseMediaType(one)
		if err != nil {
			continue
		}
		q := 1.0
		if v, err := strconv.ParseFloat(params["q"], 64); err == nil {
			q = v
		}
		switch media {
		case "application/json":
			liked = max(liked, q)
		case "text/plain", "application/openmetrics-text", "application/vnd.google.protobuf":
			text = max(text, q)
		}
	}
	return liked > 0 && liked >= text
}
