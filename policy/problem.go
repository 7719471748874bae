package policy

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a value, and where.
type Problem struct {
	Path    string // "port", "resilience.retry.max_attempts", "match_headers.version"
	Message string // "70000 is not in 1..65535"
}

// Problems are all that is wrong with a value. It is an error when not empty.
type Problems []Problem

// Error gives "path: message; path: message".
func (p Problems) Error() string { return strings.Join(p.lines(""), "; ") }

// Under gives the same problems with a prefix before each path.
func (p Problems) Under(prefix string) Problems {
	out := make(Problems, len(p))
	for i, q := range p {
		out[i] = Problem{Path: join(prefix, q.Path), Message: q.Message}
	}
	return out
}

// At gives the same problems, all of one path.
func (p Problems) At(path string) Problems {
	out := make(Problems, len(p))
	for i, q := range p {
		out[i] = Problem{Path: path, Message: q.Message}
	}
	return out
}

// Err gives nil when nothing is wrong.
func (p Problems) Err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

func (p Problems) lines(prefix string) []string {
	out := make([]string, len(p))
	for i, q := range p {
		out[i] = join(prefix, q.Path) + ": " + q.Message
	}
	return out
}

func (p *Problems) add(path, format string, args ...any) {
	*p = append(*p, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

func (p *Problems) addErr(path string, err error) {
	if err != nil {
		p.add(path, "%v", err)
	}
}

func join(prefix, path string) string {
	switch {
	case prefix == "":
		return path
	case path == "":
		return prefix
	case strings.HasPrefix(path, "["):
		return prefix + path
	default:
		return prefix + "." + path
	}
}

// oneOf checks a word against the words allowed.
func (p *Problems) oneOf(path, got string, allowed ...string) {
	for _, a := range allowed {
		if got == a {
			return
		}
	}
	p.add(path, "%q is not one of %s", got, strings.Join(allowed, ", "))
}

func (p *Problems) intIn(path string, got, low, high int) {
	if got < low || got > high {
		p.add(path, "%d is not in %d..%d", got, low, high)
	}
}

// secondsIn checks a time: from low to a day.
func (p *Problems) secondsIn(path string, got, low float64) {
	if !(got >= low && got <= maxTimeout) { // also refuses NaN
		p.add(path, "%v s is not in %v..%v s", got, low, maxTimeout)
	}
}
