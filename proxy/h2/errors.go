package h2

import (
	"errors"
	"fmt"
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

// Error is how an exchange, or a connection, ends when it does not end well.
type Error struct {
	Side    Side
	Step    Step
	Timeout bool // a time limit of Config or the deadline of RoundTrip passed
	Sent    bool // the upstream may have seen the request; false if it said that it did nothing
	Got     bool // something of a response had come from the upstream
	Reused  bool // the upstream connection had carried an exchange before
	Status  int  // what to answer if nothing has been answered: 400, 408, 431, 500, 501, 502, 504
	Err     error
}

// Error names the side and the step once.
func (e *Error) Error() string {
	return fmt.Sprintf("h2: %s: %s: %v", e.Side, e.Step, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Stale reports that the failure tells nothing about the upstream but that this
// connection is over or full: it was closed, or told to end, before anything of a
// response came. If Sent is false as well, any request may be sent again, else only
// an idempotent one.
func (e *Error) Stale() bool {
	return e.Side == SideUpstream && !e.Got && !e.Timeout && (e.Reused || !e.Sent)
}

// Causes that a caller may want to tell apart with errors.Is.
var (
	ErrMalformed = errors.New("malformed message")                       // refused by the strict parser
	ErrTooLarge  = errors.New("head too large")                          // 431
	ErrTruncated = errors.New("connection closed in mid-message")        // the peer went away
	ErrStale     = errors.New("upstream connection is over")             // found before anything was sent
	ErrNoReplay  = errors.New("request body is gone, cannot send again") // RoundTrip after CanRetry said no
	ErrNoConnect = errors.New("upstream takes no extended CONNECT")      // by its SETTINGS
	ErrFlood     = errors.New("too many frames that carry nothing")      // or that come to nothing
)

// ErrCode is the code of a RST_STREAM or GOAWAY frame, RFC 9113 section 7.
type ErrCode uint32

// The codes of RFC 9113 section 7.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeText = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String is the code as the RFC writes it.
func (c ErrCode) String() string {
	if int(c) < len(codeText) {
		return codeText[c]
	}
	return fmt.Sprintf("code %#x", uint32(c))
}

// ResetError is a stream that the peer reset.
type ResetError struct{ Code ErrCode }

// Error names the code.
func (e *ResetError) Error() string { return "stream was reset: " + e.Code.String() }

// GoAwayError is a connection that the peer ended before it looked at the stream.
type GoAwayError struct{ Code ErrCode }

// Error names the code.
func (e *GoAwayError) Error() string { return "connection is going away: " + e.Code.String() }

// connError is a fault of the peer for which its connection ends: what it is told,
// and why.
type connError struct {
	code ErrCode
	text string
	is   error
}

func (e *connError) Error() string { return e.text + " (" + e.code.String() + ")" }

func (e *connError) Is(target error) bool { return target == e.is }

func protocol(code ErrCode, text string) *connError { return &connError{code, text, ErrMalformed} }

func flood(text string) *connError { return &connError{EnhanceYourCalm, text, ErrFlood} }

// refusal is a fault of a message's form. Status is the answer if a client made it;
// 0: its stream is reset.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// Is makes errors.Is(err, ErrMalformed) and ErrTooLarge work.
func (r *refusal) Is(target error) bool {
	if r.status == http.StatusRequestHeaderFieldsTooLarge {
		return target == ErrTooLarge
	}
	return target == ErrMalformed
}

// What the strict parser refuses: RFC 9113 sections 8.1 to 8.5.
var (
	errFieldName   = &refusal{0, "field name is empty, not in lower case or has a byte that is not allowed"}
	errFieldValue  = &refusal{0, "field value has a control byte, or white space at an end"}
	errConnField   = &refusal{0, "field belongs to one connection of HTTP/1.1"}
	errPseudo      = &refusal{0, "pseudo-header field is unknown, repeated, out of place or missing"}
	errLength      = &refusal{0, "content-length is not a plain number, or repeated"}
	errLengthWrong = &refusal{0, "body is not as long as content-length says"}
	errTrailers    = &refusal{0, "trailer section is not the end of the stream"}
	errMethod      = &refusal{0, "method is not a token"}
	errScheme      = &refusal{0, "scheme is not http or https"}
	errPath        = &refusal{0, "path is empty, or has a byte or a form that is not allowed"}
	errStatus      = &refusal{0, "status is not three digits, or not one that HTTP/2 has"}
	errHost        = &refusal{http.StatusBadRequest, "authority is missing, repeated, has a byte that is not allowed, or differs from host"}
	errConnect     = &refusal{http.StatusNotImplemented, "CONNECT is not served"}
	errHeadLarge   = &refusal{http.StatusRequestHeaderFieldsTooLarge, "head is too large"}
)

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

// errSlow is a time limit of ours that passed; it is a timeout to net.Error users too.
var errSlow error = slowError{}

type slowError struct{}

func (slowError) Error() string   { return "took too long" }
func (slowError) Timeout() bool   { return true }
func (slowError) Temporary() bool { return true }
