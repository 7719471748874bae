package policy

import "slices"

// Handling is what a rule does with the requests that it matches, besides
// sending them where it says. The zero value does nothing.
type Handling struct {
	Rewrite         *Rewrite        `json:"rewrite,omitempty" doc:"changes path and host of what the service gets"`
	RequestHeaders  *HeaderChanges  `json:"request_headers,omitempty" doc:"changes the header that the service gets"`
	ResponseHeaders *HeaderChanges  `json:"response_headers,omitempty" doc:"changes the header that the caller gets"`
	Redirect        *Redirect       `json:"redirect,omitempty" doc:"sends the caller elsewhere; nothing is sent to the service"`
	DirectResponse  *DirectResponse `json:"direct_response,omitempty" doc:"answers; nothing is sent to the service"`
	Mirror          *Mirror         `json:"mirror,omitempty" doc:"sends a copy to another service, whose answers are dropped"`
	Fault           *Fault          `json:"fault,omitempty" doc:"delays or answers requests, to see how callers bear it"`

	PerTryTimeout float64 `json:"per_try_timeout,omitempty" doc:"seconds until the head of the answer, for each try; left out, that of the request"` // 0 is none
	IdleTimeout   float64 `json:"idle_timeout,omitempty" doc:"seconds that an answer may pause in its body; left out, for ever"`                     // 0 is none

	RetryOn          []string `json:"retry_on,omitempty" doc:"what is tried again; left out, 5xx"`
	RetryStatusCodes []int    `json:"retry_status_codes,omitempty" doc:"what retriable-status-codes stands for"`
	RetryDelay       *float64 `json:"retry_delay,omitempty" doc:"seconds × n before try n+1; left out, the service's or the mesh's"`
	RetryMaxDelay    float64  `json:"retry_max_delay,omitempty" doc:"seconds; no wait is longer, and a longer Retry-After is not waited for; left out, 10"`

	Hedge *Hedge `json:"hedge,omitempty" doc:"sends idempotent requests, and calls of gRPC, that are late to a second endpoint, too"`
}

// Rewrite changes what of a request names its target. The query stays.
type Rewrite struct {
	PathPrefix string `json:"path_prefix,omitempty" doc:"takes the place of what match_path has before its *"`
	Path       string `json:"path,omitempty" doc:"the whole path; where match_path is regex:…, $1 and ${name} are its groups, $$ is a $"`
	Host       string `json:"host,omitempty" doc:"takes the place of Host"`
}

// HeaderChanges are made in this order: remove, set, add. Names are compared
// without regard to case.
type HeaderChanges struct {
	Remove []string          `json:"remove,omitempty" doc:"names"`
	Set    map[string]string `json:"set,omitempty" doc:"by name: the value, in the place of any that came"`
	Add    map[string]string `json:"add,omitempty" doc:"by name: a value beside those that came"`
}

// Redirect answers with a Location. What is left empty is as in the request.
type Redirect struct {
	Status     int    `json:"status,omitempty" doc:"301, 302, 303, 307 or 308; left out, 302"`
	Scheme     string `json:"scheme,omitempty" doc:"http or https"`
	Host       string `json:"host,omitempty" doc:"name, or name:port"`
	Path       string `json:"path,omitempty" doc:"as in rewrite"`
	PathPrefix string `json:"path_prefix,omitempty" doc:"as in rewrite"`
}

// DirectResponse is an answer that the caller's proxy gives by itself.
type DirectResponse struct {
	Status      int    `json:"status" doc:"200 to 599"`
	Body        string `json:"body,omitempty" doc:"at most 64 KiB"`
	ContentType string `json:"content_type,omitempty" doc:"left out, text/plain; charset=utf-8"`
}

// Mirror sends copies of requests to a second service.
type Mirror struct {
	Service string   `json:"service" doc:"name or namespace/name"`
	Subset  string   `json:"subset,omitempty"`
	Percent *float64 `json:"percent,omitempty" doc:"of the requests; left out, 100"`
}

// Fault makes requests slow, or fail, that have nothing wrong with them.
type Fault struct {
	Delay  *FaultDelay `json:"delay,omitempty"`
	Abort  *FaultAbort `json:"abort,omitempty"`
	Header string      `json:"header,omitempty" doc:"only requests that carry this header"`
}

// FaultDelay holds requests back. The time counts as the service's: it is part
// of the request's timeout.
type FaultDelay struct {
	Seconds float64  `json:"seconds"`
	Percent *float64 `json:"percent,omitempty" doc:"of the requests; left out, 100"`
}

// FaultAbort answers in the service's place.
type FaultAbort struct {
	Status     int      `json:"status,omitempty" doc:"200 to 599"`
	GRPCStatus int      `json:"grpc_status,omitempty" doc:"1 to 16"`
	Percent    *float64 `json:"percent,omitempty" doc:"of the requests; left out, 100"`
}

// Hedge has requests whose answer is late sent a second time, to another
// endpoint; the answer that comes first is used.
type Hedge struct {
	After      float64  `json:"after,omitempty" doc:"seconds without an answer"`
	Percentile float64  `json:"percentile,omitempty" doc:"in place of after: longer than so many percent of the rule's requests take, 50 to 99.9"`
	Percent    *float64 `json:"percent,omitempty" doc:"at most so many of the last 10 s' requests, though one a second; left out, 10"`
}

// Bounds of what a rule's handling may ask for.
const (
	maxBody       = 64 << 10 // bytes of a direct response
	maxFaultDelay = 300.0    // s: as long as a drain may be held up by it
	maxChanges    = 64       // headers that one rule changes
)

// RetryConditions are the words of retry_on. The names and meanings of the first
// six are Envoy's, and so are those of the gRPC statuses.
var RetryConditions = []string{
	"5xx", "gateway-error", "connect-failure", "reset", "retriable-status-codes",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// RetryOn is a set of conditions, a bit for each of RetryConditions.
type RetryOn uint16

const (
	on5xx RetryOn = 1 << iota
	onGatewayError
	onConnectFailure
	onReset
	onStatusCodes
	onCancelled
)

// retryOn compiles known words; without any it is what the mesh retries.
func retryOn(words []string) (on RetryOn) {
	for _, w := range words {
		if i := slices.Index(RetryConditions, w); i >= 0 {
			on |= 1 << i
		}
	}
	if on == 0 {
		return on5xx
	}
	return on
}

// grpcCodes are the statuses of the conditions from onCancelled on, as the
// grpc-status field has them.
var grpcCodes = []string{"1", "4", "13", "8", "14"}

// Retries says which outcomes of a try are worth another.
type Retries struct {
	on    RetryOn
	codes []int
}

// Answer tells whether an answer with this status is worth another try.
func (r *Retries) Answer(status int) bool {
	switch {
	case r.on&on5xx != 0 && status >= 500 && status <= 599:
		return true
	case r.on&onGatewayError != 0 && status >= 502 && status <= 504:
		return true
	}
	return r.on&onStatusCodes != 0 && slices.Contains(r.codes, status)
}

// GRPC tells whether a grpc-status is worth another try. That rules name it says
// that the methods bear it: gRPC has no idempotent ones by name.
func (r *Retries) GRPC(status string) bool {
	i := slices.Index(grpcCodes, status)
	return i >= 0 && r.on&(onCancelled<<i) != 0
}

// NoAnswer tells whether a try without an answer is worth another: connected
// says whether it had a connection.
func (r *Retries) NoAnswer(connected bool) bool {
	worth := on5xx | onGatewayError | onReset
	if !connected {
		worth |= onConnectFailure
	}
	return r.on&worth != 0
}
