package relay

import "fmt"

// Side names one of the two connections.
type Side uint8

// The sides of a relay.
const (
	Client Side = iota
	Upstream
)

// Reason is why a relay ended.
type Reason uint8

// The ways a relay ends.
const (
	// EOF: both sides ended their stream, and all bytes were handed on.
	EOF Reason = iota
	// Failed: one side could not be read or written; see Result.Err.
	Failed
	// Idle: no byte moved for the configured time.
	Idle
	// Cancelled: the relay was aborted, or its loop closed.
	Cancelled
)

// Result is what is left of a relay once it has ended.
type Result struct {
	// ToUpstream and ToClient are the bytes handed to the kernel (or the TLS
	// layer) of that side. After a failure the peer may have seen fewer.
	ToUpstream, ToClient int64
	// Reason is why the relay ended.
	Reason Reason
	// Err is the first failure and whose it was. It is nil unless Reason is
	// Failed.
	Err *Error
}

// Error is a failure of one side of a relay.
type Error struct {
	Side Side   // the connection that failed
	Op   string // "read", "write" or "close write"
	Err  error  // what the system said
}

// Error tells side, step and cause.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s: %v", e.Side, e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// String is "client" or "upstream".
func (s Side) String() string {
	if s == Client {
		return "client"
	}
	return "upstream"
}

func (s Side) other() Side { return s ^ 1 }

// String is one word, fit for a metric label or a log field.
func (r Reason) String() string {
	switch r {
	case EOF:
		return "eof"
	case Failed:
		return "failed"
	case Idle:
		return "idle"
	case Cancelled:
		return "cancelled"
	}
	return "unknown"
}
