package proxy

import "github.com/weir-mesh/weir/policy"

// readPath is for requests that rules look at by their path: it brings the path into
// the form in which they do, and in which the server gets it. Where no rule looks, a
// path is passed on as it came. It is false for a path that no server should read.
func readPath(paths *policy.PathReader, x exchange) bool {
	if !paths.Read(x.Target()) {
		return false
	}
	if !paths.Normal() {
		x.Retarget(paths.Target())
	}
	return true
}

// sameRoute tells whether the request's route is that of all readings of its path.
// Where it is not, the server could answer for a path that another rule is about.
func (o *outbound) sameRoute(roll uint64) bool {
	for n := 0; ; n++ {
		reading, more := o.paths.Reading(n)
		if !more {
			return true
		}
		o.request.Path = reading
		if o.dest.router.Route(&o.request, roll).Rule != o.route.Rule {
			return false
		}
	}
}

// verdict is what the security rules say; one is false where they do not say the
// same of all readings of the path.
func (r *inboundRequests) verdict(x exchange, g *guard) (v policy.Verdict, one bool) {
	v = r.judge(x, g, x.Target())
	for n := 0; g.byPath && v.Allow; n++ {
		reading, more := r.paths.Reading(n)
		if !more {
			break
		}
		if other := r.judge(x, g, reading); other.Allow != v.Allow || other.Rule != v.Rule {
			return v, false
		}
	}
	return v, true
}

// judge asks the security rules about the request as if target were its target.
func (r *inboundRequests) judge(x exchange, g *guard, target string) policy.Verdict {
	return g.Authorize(r.in.caller, r.method(x, target))
}
