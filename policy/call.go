package policy

import (
	"net/netip"
	"strings"
)

// Caller is who is calling, as far as it is known.
type Caller struct {
	Name     ServiceName // from the peer's certificate
	Verified bool        // the certificate was checked: Name holds
	Addr     netip.Addr
}

// Call is a request, or a connection whose bytes are not HTTP, about which rules
// decide. Its strings and funcs need to hold only for the length of a decision.
type Call struct {
	Caller
	Port   uint16 // of the service
	Method string // "" is a connection
	Path   string // as on the request line, query included

	// Header is a field's value after n others of that name. nil has none.
	Header func(name string, n int) (value string, ok bool)
	// Token gives the claims of the bearer token; refused says why there are none:
	// TokenMissing or TokenInvalid. It is asked only where a rule needs a token. nil
	// is TokenMissing.
	Token func() (claims map[string]any, refused Reason)
}

// opaque tells that what the connection carries cannot be seen.
func (c *Call) opaque() bool { return c.Method == "" }

func (c *Call) path() string {
	path, _, _ := strings.Cut(c.Path, "?")
	return path
}

func (c *Call) token() (map[string]any, Reason) {
	if c.Token == nil {
		return nil, TokenMissing
	}
	return c.Token()
}

// Reason is why a call is allowed or not, in one word.
type Reason string

// The reasons of a Verdict.
const (
	ByRule       Reason = "rule"
	ByDefault    Reason = "default-allow"
	ByControl    Reason = "health-check"
	NoRule       Reason = "no-rule"
	Denied       Reason = "denied" // by a rule with action deny
	MethodDenied Reason = "method" // rules are about the caller, and none allows this:
	PathDenied   Reason = "path"   // what of the last one did not fit
	HeaderDenied Reason = "header"
	ClaimDenied  Reason = "claims"
	TokenMissing Reason = "token-missing"
	TokenInvalid Reason = "token-invalid"
	MTLSRequired Reason = "mtls-required"
)

// Verdict is the decision about one call.
type Verdict struct {
	Allow  bool
	Reason Reason
	Rule   string // id of the rule that decided; "" where none did
}
