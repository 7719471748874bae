package h1

import (
	"errors"
	"fmt"
	"net"
	"net/http"
)

// Side says whose fault an Error is.
type Side uint8

// The sides of an exchange. SideLocal is a mistake of the caller, such as a header
// value with a line break in it.
const (
	SideClient Side = iota + 1
	SideUpstream
	SideLocal
)

// String is "client", "upstream" or "local".
func (s Side) String() string {
	switch s {
	case SideClient:
		return "client"
	case SideUpstream:
		return "upstream"
	case SideLocal:
		return "local"
	}
	return "unknown side"
}

// Step says how far an exchange had come when it failed.
type Step uint8

// The steps of an exchange in their order.
const (
	ReadRequest   Step = iota + 1 // the request head, from the client
	ReadBody                      // the request body, from the client
	WriteHead                     // the request head, to the upstream
	WriteBody                     // the request body, to the upstream
	ReadResponse                  // the response head, from the upstream
	ReadContent                   // the response body, from the upstream
	WriteResponse                 // the response, to the client
)

var stepText = [...]string{
	ReadRequest: "read request head", ReadBody: "read request body",
	WriteHead: "write request head", WriteBody: "write request body",
	ReadResponse: "read response head", ReadContent: "read response body",
	WriteResponse: "write response",
}

// String is the step in words, for a log line.
func (s Step) String() string {
	if int(s) < len(stepText) && stepText[s] != "" {
		return stepText[s]
	}
	return "unknown step"
}

// Error is how an exchange ends when it does not end well.
type Error struct {
	Side    Side
	Step    Step
	Timeout bool // a time limit of Config or the deadline of RoundTrip passed
	Sent    bool // some byte of the request may have reached the upstream; false where its kernel is known to have taken none
	Got     bool // some byte of a response had come from the upstream
	Reused  bool // the upstream connection had carried an exchange before
	Status  int  // what to answer if nothing has been answered: 400, 408, 414, 431, 500, 501, 502, 504, 505
	Err     error
}

// Error names the side and the step once.
func (e *Error) Error() string {
	return fmt.Sprintf("h1: %s: %s: %v", e.Side, e.Step, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Stale reports the keep-alive race: a connection that had served before was
// closed by the upstream before a byte of a response came. If Sent is false as
// well, any request may be sent again, else only an idempotent one.
func (e *Error) Stale() bool {
	return e.Side == SideUpstream && e.Reused && !e.Got && !e.Timeout
}

// Causes that a caller may want to tell apart with errors.Is.
var (
	ErrMalformed = errors.New("malformed message")                       // refused by the strict parser
	ErrTooLarge  = errors.New("head too large")                          // 414 or 431
	ErrTruncated = errors.New("connection closed in mid-message")        // the peer went away
	ErrStale     = errors.New("idle upstream connection was closed")     // found before anything was sent
	ErrNoReplay  = errors.New("request body is gone, cannot send again") // RoundTrip after CanRetry said no
	ErrGone      = errors.New("client went away while waiting")          // FIN for longer than the grace, or RST
)

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// statusFor is the answer that fits a fault, where the parser did not name one.
func statusFor(side Side, timeout bool) int {
	switch {
	case side == SideLocal:
		return http.StatusInternalServerError
	case side == SideClient && timeout:
		return http.StatusRequestTimeout
	case side == SideClient:
		return http.StatusBadRequest
	case timeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}
