package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// An entity tag is a resource's version, "41". Where the answer shows settings
// of the mesh too, theirs follows, "41-57": such an answer is another when they
// change. As a condition of a write only the resource's own counts.
func etag(version int64, shows ...int64) string {
	tag := `"` + strconv.FormatInt(version, 10)
	for _, v := range shows {
		tag += "-" + strconv.FormatInt(v, 10)
	}
	return tag + `"`
}

// tags takes a list of entity tags apart (RFC 9110 section 8.8.3), without
// quotes and marks of weakness.
func tags(field, header string) ([]string, error) {
	var out []string
	for rest := strings.TrimSpace(header); rest != ""; {
		tag, after, closed := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(rest, "W/"), `"`), `"`)
		if !closed || !strings.HasPrefix(strings.TrimPrefix(rest, "W/"), `"`) {
			return nil, refuse(http.StatusBadRequest, `header.%s: %s is not "…", a list of them, or *`, field, show(header))
		}
		out = append(out, tag)
		after = strings.TrimSpace(after)
		if rest = strings.TrimSpace(strings.TrimPrefix(after, ",")); after != "" && after[0] != ',' {
			return nil, refuse(http.StatusBadRequest, `header.%s: %s is not "…", a list of them, or *`, field, show(header))
		}
	}
	return out, nil
}

// WriteParam is what a write may be made to depend on.
type WriteParam struct {
	IfMatch     string `header:"If-Match" doc:"only if the resource is at one of these versions (ETag); * is any, so that it must exist"`
	IfNoneMatch string `header:"If-None-Match" doc:"*: only if there is no such resource"`
	DryRun      bool   `query:"dry_run" doc:"1: tell what would change, and store nothing"`
}

func (in *WriteParam) condition() (policy.Condition, error) {
	var c policy.Condition
	switch in.IfNoneMatch {
	case "":
	case "*":
		c.Absent = true
	default:
		return c, refuse(http.StatusBadRequest, "header.If-None-Match: %s is not *, the only one that a write takes", show(in.IfNoneMatch))
	}
	if in.IfMatch == "*" {
		c.Exists = true
		return c, nil
	}
	list, err := tags("If-Match", in.IfMatch)
	for _, tag := range list {
		own, _, _ := strings.Cut(tag, "-")
		v, err := strconv.ParseInt(own, 10, 64)
		if err != nil {
			v = -1 // not one of ours, and so of no version
		}
		c.Versions = append(c.Versions, v)
	}
	return c, err
}

// ReadParam is what a client that has an answer already says of it.
type ReadParam struct {
	IfNoneMatch string `header:"If-None-Match" doc:"304 if the answer would have one of these ETags"`
}

// fresh tells whether the client has what it would be answered.
func (in *ReadParam) fresh(tag string) bool {
	if in.IfNoneMatch == "*" {
		return true
	}
	list, err := tags("If-None-Match", in.IfNoneMatch)
	return err == nil && slices.Contains(list, strings.Trim(tag, `"`))
}

// found is the answer to a read of one resource.
type found[T any] struct {
	Status int
	ETag   string `header:"ETag"`
	Body   T
}

func answer[T any](in *ReadParam, tag string, body T) *found[T] {
	if in.fresh(tag) {
		return &found[T]{Status: http.StatusNotModified, ETag: tag}
	}
	return &found[T]{Status: http.StatusOK, ETag: tag, Body: body}
}
