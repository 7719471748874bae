package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

type updateConfigInput struct {
	WriteParam
	RawBody []byte `contentType:"application/json"`
}

func (s *Server) updateConfig(ctx context.Context, in *updateConfigInput) (*writeOutput, error) {
	// A patch that is wrong whatever is set is refused before the store is asked;
	// the store merges again, into what is set by then.
	patch, merged, err := readPatch(s.Mesh.Snapshot().Settings().Value, in.RawBody)
	if err != nil {
		return nil, err
	}
	out, err := s.conditional(ctx, "update the settings", policy.Edit{Ref: configRef, Patch: patch}, &in.WriteParam, "config updated")
	return withWarning(out, &merged, patch), err
}

var configRef = policy.Ref{Kind: policy.KindConfig}

// readPatch takes a body as a patch of settings.
func readPatch(settings policy.Settings, body []byte) (patch []byte, merged policy.Settings, err error) {
	patch = bytes.Clone(body) // huma uses its buffer again
	if err := checkJSON(patch); err != nil {
		return nil, merged, refuse(http.StatusBadRequest, "%s", joinPath("body", err.Error()))
	}
	merged, problems := mergePatch(settings, patch)
	return patch, merged, badRequest("body", problems)
}

func withWarning(out *writeOutput, merged *policy.Settings, patch []byte) *writeOutput {
	if idle := merged.Idle(patch); out != nil && len(idle) > 0 {
		out.Warning = warning(idleText(idle))
	}
	return out
}

func idleText(idle []string) string {
	return strings.Join(idle, ", ") + ": kept, but not acted on by this version"
}

// replaceConfig sets what the body names, and everything else to its default.
func (s *Server) replaceConfig(ctx context.Context, in *updateConfigInput) (*writeOutput, error) {
	patch, settings, err := readPatch(policy.DefaultSettings(), in.RawBody)
	if err != nil {
		return nil, err
	}
	e := policy.Edit{Ref: configRef, To: &policy.Resource{Settings: &settings}}
	out, err := s.conditional(ctx, "replace the settings", e, &in.WriteParam, "config replaced")
	return withWarning(out, &settings, patch), err
}

type resetConfigInput struct{ WriteParam }

func (s *Server) resetConfig(ctx context.Context, in *resetConfigInput) (*writeOutput, error) {
	return s.conditional(ctx, "reset the settings", policy.Edit{Ref: configRef}, &in.WriteParam, "config reset")
}

// mergePatch lays a patch, which is JSON, over settings.
func mergePatch(settings policy.Settings, patch []byte) (policy.Settings, policy.Problems) {
	if text := bytes.TrimSpace(patch); len(text) == 0 || text[0] != '{' {
		return settings, policy.Problems{{Message: shorten(string(text)) + " is not an object"}}
	}
	merged, err := settings.Merge(patch)
	var p policy.Problems
	if err != nil && !errors.As(err, &p) {
		p = policy.Problems{{Message: err.Error()}}
	}
	return merged, p
}

// joinPath puts a path before a message that may begin with the rest of it.
func joinPath(path, message string) string {
	if strings.HasPrefix(message, ".") {
		return path + message
	}
	return path + ": " + message
}

// warning makes a Warning header (RFC 7234 section 5.5) of plain text without
// quotes; warningText takes the text out again.
func warning(text string) string { return `299 weir "` + text + `"` }

func warningText(header string) string {
	_, text, ok := strings.Cut(header, `"`)
	if !ok {
		return header
	}
	return strings.TrimSuffix(text, `"`)
}

type getConfigInput struct {
	WatchParam
	ReadParam
}

func (s *Server) getConfig(_ context.Context, in *getConfigInput) (*found[map[string]any], error) {
	settings := s.Mesh.Snapshot().Settings()
	return answer(&in.ReadParam, etag(settings.Version), viewConfig(settings.Value)), nil
}

// viewConfig is the settings as they are shown.
func viewConfig(settings policy.Settings) map[string]any {
	tree, err := settings.Effective()
	if err != nil {
		panic(fmt.Sprintf("settings that were merged from JSON have no JSON: %v", err))
	}
	return tree
}
