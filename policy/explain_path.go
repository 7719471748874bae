package policy

// Reasons for which a proxy refuses a request by its path, with 400.
const (
	BadPath       Reason = "bad-path"
	AmbiguousPath Reason = "ambiguous-path"
)

// readPath gives a path the form in which the rules of a proxy look at it, if any of
// them does. It is false where the proxy refuses the request, which is then
// explained: same tells whether rules say the same of target and of another
// reading of it.
func (e *Explanation) readPath(looks bool, path string, same func(target, reading string) bool) (string, bool) {
	if !looks || path == "" {
		return path, true
	}
	var r PathReader
	if !r.Read(path) {
		e.refuse(BadPath, "no server should read its path: a NUL, a bad escape or overlong UTF-8, where a rule looks at the path")
		return path, false
	}
	for n := 0; ; n++ {
		reading, more := r.Reading(n)
		switch {
		case !more:
			return r.Target(), true
		case !same(r.Target(), reading):
			e.refuse(AmbiguousPath, "some servers read its path as "+reading+", which does not fall under the same rule")
			return r.Target(), false
		}
	}
}

func (e *Explanation) refuse(reason Reason, why string) {
	e.Allowed, e.Reason, e.Rule, e.Why = false, reason, "", why
	if e.Encryption.Kind == "" {
		e.Encryption = Encryption{"none", "nothing is sent"}
	}
}

// sameRoute compares the traffic rules that a request falls under by two paths.
func (r *Router) sameRoute(req Request, a, b string) bool {
	req.Path = a
	first := r.Route(&req, 0).Rule
	req.Path = b
	return r.Route(&req, 0).Rule == first
}

// sameVerdict compares verdicts about a call by two paths, if it is allowed by the first.
func (g *Guard) sameVerdict(c Call, a, b string) bool {
	c.Path = a
	first := g.Authorize(&c)
	c.Path = b
	second := g.Authorize(&c)
	return !first.Allow || second.Allow && second.Rule == first.Rule
}
