package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Revocation takes trust away from an identity or from one certificate before it
// ends: exactly one of Identity and Serial is set.
type Revocation struct {
	Identity ServiceName // every certificate and join token of a service
	Serial   string      // one certificate: lower-case hexadecimal, without leading zeros
	Since    float64     // Unix seconds
	Until    float64     // Unix seconds: all that it names has ended by then, unless it was to end sooner
	Reason   string      // an operator's words; may be empty
}

// MaxRevocations bounds how many hold at once: every proxy has all of them, 60 bytes
// each.
const MaxRevocations = 1000

// maxReason bounds the words, in bytes; maxSerial the digits of 20 octets (RFC 5280
// section 4.1.2.2).
const (
	maxReason = 200
	maxSerial = 40
)

// ID names a revocation: "identity.<namespace>.<service>" or "serial.<hex>".
func (r *Revocation) ID() string {
	if r.Serial != "" {
		return "serial." + r.Serial
	}
	return "identity." + r.Identity.Namespace + "." + r.Identity.Name
}

// String is what is revoked, in words.
func (r *Revocation) String() string {
	if r.Serial != "" {
		return "certificate " + r.Serial
	}
	return "identity " + r.Identity.String()
}

// Validate lists what is wrong with a revocation.
func (r *Revocation) Validate() Problems {
	var p Problems
	switch {
	case (r.Serial == "") == r.Identity.IsZero():
		p = append(p, Problem{Path: "identity", Message: "exactly one of identity and serial is to be given"})
	case r.Serial == "":
		if err := r.Identity.Validate(); err != nil {
			p = append(p, Problem{Path: "identity", Message: err.Error()})
		} else if r.Identity.Namespace == ControlPlane.Namespace {
			p = append(p, Problem{Path: "identity", Message: fmt.Sprintf("%s is the control plane's own; a root is taken away by weir ca rotate", r.Identity)})
		}
	default:
		if s, err := ParseSerial(r.Serial); err != nil {
			p = append(p, Problem{Path: "serial", Message: err.Error()})
		} else if s != r.Serial {
			p = append(p, Problem{Path: "serial", Message: fmt.Sprintf("%q is written %q", r.Serial, s)})
		}
	}
	if len(r.Reason) > maxReason {
		p = append(p, Problem{Path: "reason", Message: fmt.Sprintf("%d bytes are more than %d", len(r.Reason), maxReason)})
	}
	return p
}

// ParseSerial reads a certificate's serial number as people write it: hexadecimal,
// with or without colons, of either case.
func ParseSerial(text string) (string, error) {
	s := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
	s = strings.TrimLeft(strings.TrimPrefix(s, "0x"), "0")
	if s == "" || len(s) > maxSerial || strings.Trim(s, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is not a serial number: 1 to %d hexadecimal digits, as openssl x509 -serial shows them", text, maxSerial)
	}
	return s, nil
}

// Revoked is a list of revocations, made ready to be asked. It does not change.
type Revoked struct {
	identities map[ServiceName]struct{}
	serials    map[string]struct{}
}

// NewRevoked makes it of a list; without entries it is nil, which revokes nothing.
func NewRevoked(list []Revocation) *Revoked {
	if len(list) == 0 {
		return nil
	}
	r := &Revoked{identities: map[ServiceName]struct{}{}, serials: map[string]struct{}{}}
	for i := range list {
		if e := &list[i]; e.Serial != "" {
			r.serials[e.Serial] = struct{}{}
		} else {
			r.identities[e.Identity] = struct{}{}
		}
	}
	return r
}

// Identity tells whether all of a service's certificates are revoked.
func (r *Revoked) Identity(name ServiceName) bool {
	if r == nil {
		return false
	}
	_, yes := r.identities[name]
	return yes
}

// Serial tells whether one certificate is.
func (r *Revoked) Serial(serial string) bool {
	if r == nil {
		return false
	}
	_, yes := r.serials[serial]
	return yes
}

// Serials lists those that are revoked, in order.
func (r *Revoked) Serials() []string {
	if r == nil {
		return nil
	}
	out := make([]string, 0, len(r.serials))
	for s := range r.serials {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
