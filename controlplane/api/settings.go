package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

type configInput struct {
	RawBody []byte `contentType:"application/json"`
}

type configOutput struct {
	Warning string `header:"Warning"`
	Body    statusBody
}

func (s *server) updateConfig(ctx context.Context, in *configInput) (*configOutput, error) {
	patch := bytes.Clone(in.RawBody) // huma uses its buffer again
	if err := checkJSON(patch); err != nil {
		return nil, refuse(http.StatusBadRequest, "%s", joinPath("body", err.Error()))
	}
	// A patch that is wrong whatever is set is refused before the store is asked;
	// the store merges again, into what is set by then.
	merged, problems := mergePatch(s.Settings.Settings(), patch)
	if err := badRequest("body", problems); err != nil {
		return nil, err
	}
	if err := s.Settings.UpdateSettings(ctx, patch); err != nil {
		return nil, s.answerFor("update the settings", err)
	}
	out := &configOutput{Body: statusBody{"config updated"}}
	if idle := withoutEffect(&merged, patch); len(idle) > 0 {
		out.Warning = warning(strings.Join(idle, ", ") + ": kept, but not acted on by this version")
	}
	return out, nil
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

// withoutEffect names the settings that a patch switched on and that nothing
// acts on as things are: what the gateway and the trace exporter read, and what
// the programs' flags decide.
func withoutEffect(merged *policy.Settings, patch []byte) []string {
	var p struct {
		Security      map[string]json.RawMessage `json:"security"`
		Observability map[string]json.RawMessage `json:"observability"`
	}
	if json.Unmarshal(patch, &p) != nil {
		return nil // Merge took it, so this cannot be
	}
	var idle []string
	note := func(on bool, in map[string]json.RawMessage, group string, keys ...string) {
		for _, key := range keys {
			if _, ok := in[key]; ok && on {
				idle = append(idle, group+"."+key)
			}
		}
	}
	note(merged.Security.CORS.Enabled, p.Security, "security", "cors")
	note(merged.Security.SSL.Enabled, p.Security, "security", "ssl")
	note(merged.Security.Authentication.Enabled, p.Security, "security", "authentication")
	note(merged.Observability.Tracing.Enabled, p.Observability, "observability", "tracing", "tracing_enabled")
	was := policy.DefaultSettings().Observability
	note(merged.Observability.Logging != was.Logging, p.Observability, "observability", "logging")
	if merged.Observability.Metrics.Path != was.Metrics.Path || merged.Observability.Metrics.Interval != was.Metrics.Interval {
		note(true, p.Observability, "observability", "metrics")
	}
	return idle
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

func (s *server) getConfig(context.Context, *nothing) (*output[map[string]any], error) {
	tree, err := s.Settings.Settings().Effective()
	if err != nil {
		return nil, s.answerFor("show the settings", err)
	}
	return &output[map[string]any]{tree}, nil
}
