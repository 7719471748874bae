package policy

import "reflect"

// LooksAtPath tells whether any of the service's traffic rules goes by the path.
func (r *Router) LooksAtPath() bool {
	for i := range r.groups {
		if r.groups[i].match.path.kind != matchAny {
			return true
		}
	}
	return false
}

// LooksAtPath tells whether any of the security rules goes by the path. It looks at
// all rules.
func (in *Inbound) LooksAtPath() bool {
	for i := range in.Rules {
		if in.Rules[i].looksAtPath() {
			return true
		}
	}
	return false
}

// looksAtPath errs to the safe side: a condition that is not one of those below is
// taken to be about the path.
func (r SecurityRule) looksAtPath() bool {
	r.ID, r.Action, r.MTLSMode, r.RequiredJWT, r.AllowedMethods = "", "", "", false, nil
	r.Sources, r.Ports, r.Headers, r.Claims = nil, nil, nil, nil
	r.SourceNamespace, r.SourceService, r.DestinationNamespace, r.DestinationService = "", "", "", ""
	return !reflect.ValueOf(r).IsZero()
}
