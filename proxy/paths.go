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
// same of all readings of the path. The call is then as the request has it.
func (r *inboundRequests) verdict(x exchange, g *guard) (v policy.Verdict, one bool) {
	v, one = r.judge(x, g, x.Target()), true
	for n := 0; g.byPath && v.Allow && one; n++ {
		reading, more := r.paths.Reading(n)
		if !more {
			return v, true
		}
		other := r.judge(x, g, reading)
		one = other.Allow == v.Allow && other.Rule == v.Rule
		r.call.Path, r.call.Method = x.Target(), r.method(x, x.Target())
	}
	return v, one
}

// judge asks the security rules about the request as if target were its target.
func (r *inboundRequests) judge(x exchange, g *guard, target string) policy.Verdict {
	r.call.Path, r.call.Method = target, r.method(x, target)
	return g.Authorize(&r.call)
}
