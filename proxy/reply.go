package proxy

import (
	"net/http"
	"unsafe"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/ratelimit"
)

// reason is why the proxy answers in a service's stead, in one word: the value
// of the weir-error header.
type reason string

// clientGone is why nothing more is answered where the client broke off.
const clientGone reason = "client"

// refusal is an answer made by the proxy.
type refusal struct {
	status int
	word   reason
	text   string
	named  bool // the service's name follows the text
}

// The answers of API.md, each with its reason.
var (
	noEndpoints      = &refusal{503, "no-endpoints", "No healthy endpoints available", false}
	appDown          = &refusal{503, "app-unavailable", "Service unavailable", false}
	upstreamFailed   = &refusal{502, "upstream-failure", "Downstream service error", false}
	peerRevoked      = &refusal{502, "revoked", "The certificate of the server was revoked", false}
	circuitOpen      = &refusal{503, "circuit-open", "Circuit is open for ", true}
	overload         = &refusal{503, "overload", "Too many requests at once to ", true}
	rateLimited      = &refusal{429, "rate-limited", "Rate limit exceeded for ", true}
	noUpgrade        = &refusal{501, "upgrade-impossible", "The endpoint takes no such upgrade in the version of HTTP that it speaks", false}
	timedOutUpstream = &refusal{504, "timeout", "Upstream timed out", false}
	badRequest       = &refusal{400, "bad-request", "Malformed request", false}
	badPath          = &refusal{400, "bad-path", "Malformed path", false}
	ambiguousPath    = &refusal{400, "ambiguous-path", "The path can be read in several ways, and not all fall under the same rule", false}
	slowRequest      = &refusal{408, "slow-request", "The request took too long to arrive", false}
	targetTooLong    = &refusal{414, "bad-request", "The request line is too long", false}
	headTooLarge     = &refusal{431, "bad-request", "The request head is too large", false}
	notImplemented   = &refusal{501, "bad-request", "The method or transfer coding is not supported", false}
	wrongVersion     = &refusal{505, "bad-request", "The HTTP version is not supported", false}
	localFault       = &refusal{500, "internal", "The proxy could not handle the request", false}
	tokenMissing     = &refusal{401, "token-missing", "Authentication required", false}
	tokenInvalid     = &refusal{401, "token-invalid", "Invalid token", false}
	noTarget         = &refusal{400, "no-target", "X-Target-Service does not name a service", false}
	faultInjected    = &refusal{503, "fault-injected", "Fault injected by a traffic rule", false} // with the rule's status
	notLocal         = &refusal{403, "not-local", "Only the local app may name a target", false}
)

// denied is the answer to a call that policy refuses; word tells why.
func denied(word reason) *refusal {
	return &refusal{403, word, "Access denied by security policy", false}
}

// unreadable is the answer to a request that could not be read, by the status
// that fits it.
func unreadable(status int) *refusal {
	for _, r := range []*refusal{slowRequest, targetTooLong, headTooLarge, notImplemented, wrongVersion} {
		if r.status == status {
			return r
		}
	}
	if status >= 500 {
		return localFault
	}
	return badRequest
}

// refuseUnread answers in the engine's stead, before there is an exchange.
func refuseUnread(status int) (body []byte, header []string) {
	return unreadable(status).message("")
}

// answer writes a refusal as JSON. The response may still carry fields set
// before, such as those of a rate limit.
func answer(x exchange, r *refusal, service string) int {
	if g, ok := x.(grpcCall); ok && g.GRPC() {
		return answerGRPC(x, g, r, service)
	}
	body, fields := r.message(service)
	if err := x.Reply(r.status, body, fields...); err != nil {
		return 0
	}
	return r.status
}

// answerGRPC writes a refusal as gRPC has it: the status is in the fields.
func answerGRPC(x exchange, g grpcCall, r *refusal, service string) int {
	x.SetResponse("weir-error", string(r.word))
	if err := g.ReplyGRPC(grpcOf(r.status), r.words(service)); err != nil {
		return 0
	}
	return http.StatusOK
}

func (r *refusal) words(service string) string {
	if r.named {
		return r.text + service
	}
	return r.text
}

// message is a refusal's body and its fields.
func (r *refusal) message(service string) (body []byte, fields []string) {
	text := r.words(service)
	body = make([]byte, 0, len(text)+16)
	body = append(body, `{"error":"`...)
	body = append(body, text...) // our own words and a checked name: nothing to escape
	body = append(body, "\"}\n"...)
	fields = []string{"Content-Type", "application/json", "weir-error", string(r.word)}
	if r.status == 401 {
		fields = append(fields, "WWW-Authenticate", "Bearer")
	}
	return body, fields
}

func (o *outbound) reply(x exchange, r *refusal) int {
	o.reason = r.word
	return answer(x, r, o.service.label)
}

// setLimitFields puts the figures of a rate limit on the response: RateLimit and
// RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers), and Retry-After when
// it refused. They are views of buf, which the caller keeps until the exchange
// has ended.
func setLimitFields(x exchange, buf []byte, name, policy string, d ratelimit.Decision) []byte {
	buf = ratelimit.AppendRateLimit(buf, name, d)
	n := len(buf)
	x.SetResponse("RateLimit-Policy", policy)
	if !d.OK {
		buf = ratelimit.AppendRetryAfter(buf, d)
		x.SetResponse("Retry-After", view(buf[n:]))
	}
	x.SetResponse("RateLimit", view(buf[:n]))
	return buf
}

// limitPolicy is the text of a limit, the same for every request.
func limitPolicy(l policy.RateLimit) string {
	return string(ratelimit.AppendPolicy(nil, "default", ratelimit.Policy{Limit: l.Limit, Window: l.Window}))
}

// view is b as a string without copying; b must not change while it is used.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
