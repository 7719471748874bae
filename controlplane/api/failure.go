package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

// failure is the body of every answer that is not 200.
type failure struct {
	Message string `json:"error" doc:"what is wrong, and where" example:"body.port: 70000 is not in 1..65535"`

	status int
}

func (f *failure) Error() string  { return f.Message }
func (f *failure) GetStatus() int { return f.status }

// huma keeps how errors look and whether names of fields are taken in any case
// in package variables. They are set here once, before any API is built.
func init() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return newFailure(status, msg, nil, errs)
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		var known []string
		if op := ctx.Operation(); op != nil {
			known, _ = op.Metadata[knownFields].([]string)
		}
		return newFailure(status, msg, known, errs)
	}
}

// knownFields is the key in an operation's metadata under which the names of
// its body's fields are found.
const knownFields = "fields"

// newFailure turns what huma found into our words. What the schema refuses is
// 400, not 422: seed B knows no other status for a bad body.
func newFailure(status int, msg string, known []string, errs []error) *failure {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	var lines []string
	for _, err := range errs {
		if d, ok := err.(huma.ErrorDetailer); ok {
			lines = append(lines, policy.Problems{plainWords(d.ErrorDetail(), known)}.Error())
		} else if err != nil {
			lines = append(lines, err.Error())
		}
	}
	if len(lines) == 0 {
		lines = []string{msg}
	}
	sort.Strings(lines) // huma walks maps: the same body shall give the same answer
	return &failure{status: status, Message: joinLines(slices.Compact(lines))}
}

const (
	maxProblems     = 20   // that one answer names
	maxProblemBytes = 1024 // of each
)

// joinLines bounds an answer whatever the request was full of.
func joinLines(lines []string) string {
	more := ""
	if n := len(lines) - maxProblems; n > 0 {
		lines, more = lines[:maxProblems], fmt.Sprintf("; and %d more", n)
	}
	for i, line := range lines {
		if len(line) > maxProblemBytes {
			lines[i] = strings.ToValidUTF8(line[:maxProblemBytes], "") + "…"
		}
	}
	return strings.Join(lines, "; ") + more
}

// kinds says in plain words what huma's messages ask for.
var kinds = map[string]string{
	"expected boolean": "true or false",
	"expected number":  "a number",
	"expected integer": "a whole number",
	"expected string":  "a string",
	"expected array":   "a list",
	"expected object":  "an object",
}

func plainWords(d *huma.ErrorDetail, known []string) policy.Problem {
	at := func(format string, args ...any) policy.Problem {
		return policy.Problem{Path: d.Location, Message: fmt.Sprintf(format, args...)}
	}
	if want, ok := kinds[d.Message]; ok {
		return at("%s is not %s", show(d.Value), want)
	}
	if rest, ok := strings.CutPrefix(d.Message, "expected required property "); ok {
		p := at("is missing")
		p.Path += "." + strings.TrimSuffix(rest, " to be present")
		return p
	}
	if d.Message == "unexpected property" {
		_, name, _ := strings.Cut(d.Location, ".") // a name may hold dots itself
		name, known = besides(name, known)
		return at("unknown field%s", suggest(name, known))
	}
	if below, message, ok := strings.Cut(d.Message, ": "); ok && strings.HasPrefix(below, ".") { // from decode
		return policy.Problem{Path: d.Location + below, Message: message}
	}
	return at("%s", d.Message)
}

// besides gives the last part of a field's path and the names that its object
// knows, of the paths of all fields.
func besides(path string, known []string) (name string, there []string) {
	object := ""
	for _, k := range known {
		if strings.HasPrefix(path, k+".") && len(k) >= len(object) {
			object = k + "."
		}
	}
	for _, k := range known {
		if rest, ok := strings.CutPrefix(k, object); ok && !strings.Contains(rest, ".") {
			there = append(there, rest)
		}
	}
	return strings.TrimPrefix(path, object), there
}

func suggest(name string, known []string) string {
	if near := policy.Nearest(name, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return "; known here: " + strings.Join(known, ", ")
}

// show gives a value as JSON, cut short.
func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "the value"
	}
	return shorten(string(b))
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}

func refuse(status int, format string, args ...any) error {
	return &failure{status: status, Message: fmt.Sprintf(format, args...)}
}

// badRequest refuses what has problems, each under the part of the request that
// it is in: "body" or "path".
func badRequest(part string, p policy.Problems) error {
	if len(p) == 0 {
		return nil
	}
	var lines []string
	for _, q := range p.Under(part) {
		lines = append(lines, policy.Problems{q}.Error())
	}
	return refuse(http.StatusBadRequest, "%s", joinLines(lines))
}

// answerFor gives the answer to an error of one of the interfaces in Config.
func (s *Server) answerFor(step string, err error) error {
	var p policy.Problems
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return badRequest("body", p)
	}
	for _, known := range []struct {
		is     error
		status int
	}{
		{policy.ErrNotFound, http.StatusNotFound}, {policy.ErrExists, http.StatusConflict}, {policy.ErrOwned, http.StatusConflict},
		{policy.ErrForgotten, http.StatusGone},
		{policy.ErrStale, http.StatusPreconditionFailed}, {policy.ErrTooLarge, http.StatusRequestEntityTooLarge},
	} {
		if errors.Is(err, known.is) {
			return refuse(known.status, "%v", err)
		}
	}
	s.Log.Error("API call failed", zap.String("step", step), zap.Error(err))
	return refuse(http.StatusServiceUnavailable, "%s: %v", step, err)
}

// writeFailure answers where huma is not reached.
func writeFailure(w http.ResponseWriter, status int, format string, args ...any) {
	b, _ := json.Marshal(&failure{Message: fmt.Sprintf(format, args...)})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that is gone needs no answer
}
