package policy

import "time"

// Mesh is what every proxy needs to know of the mesh as a whole.
type Mesh struct {
	TrustDomain string
	EgressDeny  bool // destinations outside the mesh are refused
	AccessLog   bool
	Metrics     bool
	Tracing     bool
	Bundle      []byte // the roots to trust, PEM

	MetricsPath     string        // where proxies answer with their metrics; "" is /metrics
	MetricsInterval time.Duration // between two reports of a proxy's figures; 0 is with each sign of life
	LogLevel        string        // of the proxies' own logs: debug, info, warn or error
	LogFormat       string        // json or console
	LogOutput       string        // of the access logs: stdout or stderr

	Revocations []Revocation // what is trusted no more, in order of their ids
	SigningRoot string       // fingerprint of the root that signs; "" is not told
}

// Figures are what a proxy has counted since it started.
type Figures struct {
	InboundRequests      uint64
	OutboundRequests     uint64
	RequestErrors        uint64
	RequestDurationTotal float64 // seconds
	CircuitBreakerOpens  uint64
	RequestsRouted       uint64
	RoutingFailures      uint64
	BackendFailures      uint64
}

// Report is how a proxy is, for those who run it.
type Report struct {
	ResidentBytes      uint64    // of memory; 0 where it is not known
	CertificateExpires time.Time // zero before it has one
	Control            string    // the control plane's address, as the proxy was told it
	Clock              time.Time // the proxy's when it made this; zero where it is not known
	Circuits           []CircuitState
	CircuitsLeftOut    int         // how many more have something to tell
	Flows              []FlowCount // since the last report, a bounded number; the rest follows
	FlowsLeftOut       uint64      // calls that were not counted, for want of room

	CertificateBegins time.Time
	CertificateSerial string   // hexadecimal
	CertificateRoot   string   // fingerprint of the root above the certificate
	TrustedRoots      []string // fingerprints, in order
}

// Add sums two proxies' figures.
func (f Figures) Add(g Figures) Figures {
	f.InboundRequests += g.InboundRequests
	f.OutboundRequests += g.OutboundRequests
	f.RequestErrors += g.RequestErrors
	f.RequestDurationTotal += g.RequestDurationTotal
	f.CircuitBreakerOpens += g.CircuitBreakerOpens
	f.RequestsRouted += g.RequestsRouted
	f.RoutingFailures += g.RoutingFailures
	f.BackendFailures += g.BackendFailures
	return f
}
