package policy

import "time"

// CircuitState is how one proxy's circuit of one endpoint stands.
type CircuitState struct {
	Service  ServiceName
	Endpoint string // its id
	State    string // closed, half_open or open
	Failures int    // in a row; 0 unless closed
	Since    time.Time
	Forced   bool // an operator said so
	Ejected  bool // left out as an outlier, whatever the circuit
}

// What an operator can order of a circuit.
const (
	CircuitOpen  = "open"  // nothing passes
	CircuitClose = "close" // everything passes, and nothing is counted
	CircuitReset = "reset" // neither: it is closed, and goes by what it sees from now on
)

// CircuitOrder is what an operator wants of the circuits of one endpoint, in all
// proxies that call it. The zero value is nothing: they go by what they see.
type CircuitOrder struct {
	State  string // "open" and "close" hold; "" is not to hold
	Number int64  // of the last order, an order of reset too; a proxy starts anew when it changes
}

// MaxReportedCircuits bounds the circuits in one proxy's report: those that are
// not closed come first.
const MaxReportedCircuits = 256
