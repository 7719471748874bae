package policy

// FlowDirection says on which side of a call a proxy saw it.
type FlowDirection string

// A caller's proxy sees calls out and knows the route, its server's proxy sees
// them in and knows the verdict.
const (
	FlowInbound  FlowDirection = "inbound"
	FlowOutbound FlowDirection = "outbound"
)

// How a call was carried from host to host.
const (
	EncryptedMTLS = "mtls"
	EncryptedTLS  = "tls" // to a host outside the mesh, or the app's own
	Plaintext     = "plaintext"
)

// Why a call was not carried by the mesh's mTLS.
const (
	WhyNoCertificate = "no-certificate" // the caller showed none
	WhyNoProxy       = "no-proxy"       // none is beside the endpoint
	WhyDisabled      = "disabled"       // the mesh or a rule says so
	WhyExternal      = "external"       // the endpoint is outside the mesh
	WhyUnreached     = "unreached"      // no endpoint took the call
)

// Where a caller without a certificate is.
const (
	ClassPrivate = "private" // RFC 1918, RFC 4193, link-local
	ClassPublic  = "public"
)

// FoldedOther is the path of flows for which a proxy had no room to tell them
// apart.
const FoldedOther = "/…"

// Flow is what calls have in common that a proxy counts together. It is
// comparable; a call whose bytes are not HTTP has neither method nor path.
type Flow struct {
	Direction   FlowDirection
	Source      ServiceName // zero where the caller showed no certificate,
	SourceClass string      // and then where it is
	Destination ServiceName // whom the caller asked for; inbound, the service itself
	Port        uint16
	Protocol    string // http1, http2, grpc, tcp
	Method      string
	Path        string // without query; ids in it are *

	// Inbound.
	Allowed bool
	Reason  Reason // of the verdict
	Rule    string // id of the security rule that decided
	Token   bool   // it showed a valid token, which the rule demanded

	// Outbound.
	Route  string      // id of the traffic rule; "" where none matched
	Routed ServiceName // where it led
	Subset string

	Encryption string
	Why        string // "" with mTLS
}

// FlowCount is how often there was a flow.
type FlowCount struct {
	Flow
	Calls  uint64 // requests, or connections that are not HTTP
	Errors uint64 // of them those that were answered with 500 or above, or not at all
}
