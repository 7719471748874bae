package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Client calls the API of a control plane. Each method is one call; it is safe
// for use by several goroutines.
type Client struct {
	BaseURL string       // "http://127.0.0.1:8080"
	Token   string       // the admin token; "" sends none
	HTTP    *http.Client // nil is http.DefaultClient
	// Stale hears why the answer to a read may be out of date; may be nil.
	Stale func(why string)
}

// Error is an answer of the control plane that is not the one hoped for.
type Error struct {
	Status  int    // of HTTP
	Message string // "body.port: 70000 is not in 1..65535"
}

// Error gives the message, and for a refused token what to do.
func (e *Error) Error() string {
	if e.Status == http.StatusUnauthorized {
		return e.Message + " (--token-file or WEIR_TOKEN_FILE names the file with the admin token)"
	}
	return e.Message
}

// maxAnswer bounds what is read of an answer: a list of every endpoint of a
// large mesh fits many times over.
const maxAnswer = 256 << 20

// Register adds an endpoint or replaces the one of the same service and id.
// Start from policy.DefaultEndpoint; Status and LastSeen are not sent.
func (c *Client) Register(ctx context.Context, e policy.Endpoint) error {
	_, err := c.call(ctx, http.MethodPost, "/services/register", newEndpointBody(&e), nil)
	return err
}

// Deregister removes an endpoint; that it was not there is no error.
func (c *Client) Deregister(ctx context.Context, name policy.ServiceName, id string) error {
	_, err := c.call(ctx, http.MethodDelete, servicePath("/services", name)+"/"+url.PathEscape(id), nil, nil)
	return err
}

// Endpoints lists a service's endpoints, unhealthy ones too.
func (c *Client) Endpoints(ctx context.Context, name policy.ServiceName) ([]policy.Endpoint, error) {
	return get[[]policy.Endpoint](ctx, c, servicePath("/services", name))
}

// Services lists the services of the mesh.
func (c *Client) Services(ctx context.Context) ([]ServiceSummary, error) {
	return get[[]ServiceSummary](ctx, c, "/services")
}

// AddTrafficRule appends a rule to a service's and gives its id. Start from
// policy.DefaultTrafficRule; without an ID one is made.
func (c *Client) AddTrafficRule(ctx context.Context, name policy.ServiceName, r policy.TrafficRule) (string, error) {
	h, err := c.call(ctx, http.MethodPost, servicePath("/traffic-rules", name), newTrafficRuleBody(&r), nil)
	return h.Get(resourceID), err
}

// TrafficRules lists a service's rules in the order of evaluation, with the
// timeout and attempts in force.
func (c *Client) TrafficRules(ctx context.Context, name policy.ServiceName) ([]policy.TrafficRule, error) {
	return get[[]policy.TrafficRule](ctx, c, servicePath("/traffic-rules", name))
}

// DeleteTrafficRule removes a rule; an Error with status 404 if there is none.
func (c *Client) DeleteTrafficRule(ctx context.Context, name policy.ServiceName, id string) error {
	_, err := c.call(ctx, http.MethodDelete, servicePath("/traffic-rules", name)+"/"+url.PathEscape(id), nil, nil)
	return err
}

// AddSecurityRule appends a rule and gives its id. Without AllowedMethods it
// has the default ones, without an ID one is made.
func (c *Client) AddSecurityRule(ctx context.Context, r policy.SecurityRule) (string, error) {
	h, err := c.call(ctx, http.MethodPost, "/security-rules", newSecurityRuleBody(&r), nil)
	return h.Get(resourceID), err
}

// SecurityRules lists all rules, with the mode of mTLS in force.
func (c *Client) SecurityRules(ctx context.Context) ([]policy.SecurityRule, error) {
	return get[[]policy.SecurityRule](ctx, c, "/security-rules")
}

// DeleteSecurityRule removes a rule; an Error with status 404 if there is none.
func (c *Client) DeleteSecurityRule(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodDelete, "/security-rules/"+url.PathEscape(id), nil, nil)
	return err
}

// RootPEM gives the root's certificate.
func (c *Client) RootPEM(ctx context.Context) ([]byte, error) {
	var pem []byte
	_, err := c.call(ctx, http.MethodGet, "/certificates/ca", nil, &pem)
	return pem, err
}

// Issue gives a certificate for a service: for the key of a signing request in
// PEM, or without one for a key that the control plane makes.
func (c *Client) Issue(ctx context.Context, name policy.ServiceName, csrPEM []byte) (Certificate, error) {
	var out Certificate
	body := issueBody{ServiceName: name.Name, Namespace: name.Namespace, CSR: given(string(csrPEM))}
	_, err := c.call(ctx, http.MethodPost, "/certificates/issue", body, &out)
	return out, err
}

// CreateToken gives a join token for a service's proxies that holds for ttl; 0
// is the control plane's default.
func (c *Client) CreateToken(ctx context.Context, name policy.ServiceName, ttl time.Duration) (Token, error) {
	return c.CreateTokenFor(ctx, name, ttl, 0)
}

// CreateTokenFor is CreateToken for so many proxies; 0 is any number.
func (c *Client) CreateTokenFor(ctx context.Context, name policy.ServiceName, ttl time.Duration, uses int) (Token, error) {
	var out Token
	body := tokenBody{ServiceName: name.Name, Namespace: name.Namespace, TTL: given(ttl.Seconds()), Uses: given(uses)}
	_, err := c.call(ctx, http.MethodPost, "/tokens", body, &out)
	return out, err
}

// Tokens lists the join tokens that have not expired, the oldest first.
func (c *Client) Tokens(ctx context.Context) ([]TokenState, error) {
	return get[[]TokenState](ctx, c, "/tokens")
}

// RevokeToken has a join token refused from now on; an Error with status 404 if
// there is none.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodDelete, "/tokens/"+url.PathEscape(id), nil, nil)
	return err
}

// Explain tells what becomes of a call. What of it is empty takes its default.
func (c *Client) Explain(ctx context.Context, call Call) (policy.Explanation, error) {
	var out policy.Explanation
	body := explainBody{From: call.From, To: call.To, Port: given(call.Port), Method: &call.Method, Path: given(call.Path), Host: given(call.Host), Headers: call.Headers, JWT: given(call.JWT)}
	_, err := c.call(ctx, http.MethodPost, "/explain", body, &out)
	return out, err
}

// Metrics gives the counts of the control plane and its proxies.
func (c *Client) Metrics(ctx context.Context) (Metrics, error) {
	return get[Metrics](ctx, c, "/metrics")
}

// Status tells how the control plane is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/status")
}

// Proxies lists the proxies, those that are away too.
func (c *Client) Proxies(ctx context.Context) ([]ProxyStatus, error) {
	return get[[]ProxyStatus](ctx, c, "/proxies")
}

// Settings gives the effective settings of the mesh, without secrets.
func (c *Client) Settings(ctx context.Context) (map[string]any, error) {
	return get[map[string]any](ctx, c, "/config")
}

// UpdateSettings merges a patch, which is anything that encodes as a JSON
// object (json.RawMessage for bytes), into the settings. Warnings name settings that were taken and have no
// effect as things are.
func (c *Client) UpdateSettings(ctx context.Context, patch any) (warnings []string, err error) {
	h, err := c.call(ctx, http.MethodPost, "/config", patch, nil)
	for _, w := range h.Values("Warning") {
		warnings = append(warnings, warningText(w))
	}
	return warnings, err
}

// Apply stores documents, all of them or none; with dryRun it only tells what
// they would change.
func (c *Client) Apply(ctx context.Context, docs []Document, dryRun bool) (Stored, error) {
	var out Stored
	_, err := c.call(ctx, http.MethodPost, "/apply"+asDryRun(dryRun), newApplyBody(docs), &out)
	return out, err
}

func newApplyBody(docs []Document) applyBody {
	body := applyBody{Documents: make([]json.RawMessage, len(docs))}
	for i := range docs {
		body.Documents[i] = docs[i].text
	}
	return body
}

// History lists at most limit changes before a revision (0 is all), the newest
// first.
func (c *Client) History(ctx context.Context, before int64, limit int) ([]Revision, error) {
	return get[[]Revision](ctx, c, fmt.Sprintf("/history?before=%d&limit=%d", before, limit))
}

// Revision gives one change with its values.
func (c *Client) Revision(ctx context.Context, revision int64) (Revision, error) {
	return get[Revision](ctx, c, fmt.Sprintf("/history/%d", revision))
}

// Diff tells what differs between the states after two revisions; 0 as the
// second is now.
func (c *Client) Diff(ctx context.Context, from, to int64) ([]Change, error) {
	return get[[]Change](ctx, c, fmt.Sprintf("/diff?from=%d&to=%d", from, to))
}

// Rollback makes rules, settings and registered endpoints what they were after a
// revision; with dryRun it only tells what that would change.
func (c *Client) Rollback(ctx context.Context, revision int64, dryRun bool) (Stored, error) {
	var out Stored
	_, err := c.call(ctx, http.MethodPost, "/rollback"+asDryRun(dryRun), rollbackBody{Revision: revision}, &out)
	return out, err
}

func asDryRun(dryRun bool) string {
	if dryRun {
		return "?dry_run=1"
	}
	return ""
}

func servicePath(under string, name policy.ServiceName) string {
	return under + "/" + url.PathEscape(name.Namespace) + "/" + url.PathEscape(name.Name)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	_, err := c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

// call makes one call. The answer's body goes to out: as it is to a *[]byte,
// else decoded from JSON. The header is never nil.
func (c *Client) call(ctx context.Context, method, path string, body, out any) (http.Header, error) {
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return http.Header{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	hc := c.HTTP
	if hc == nil {
		hc = http.DefaultClient
	}
	resp, err := hc.Do(req)
	if err != nil {
		return http.Header{}, c.unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return http.Header{}, fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return http.Header{}, &Error{Status: resp.StatusCode, Message: errorMessage(resp.Status, answer)}
	}
	if w := resp.Header.Get("Warning"); c.Stale != nil && strings.HasPrefix(w, "110 ") {
		c.Stale(warningText(w))
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = answer
	} else if out != nil {
		if err := json.Unmarshal(answer, out); err != nil {
			return http.Header{}, fmt.Errorf("%s %s: what answers at %s is not a control plane: %w", method, path, c.BaseURL, err)
		}
	}
	return resp.Header, nil
}

func (c *Client) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.BaseURL, "/")+BasePath+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	return req, nil
}

// unreachable says what to do about a call that got no answer.
func (c *Client) unreachable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // its text repeats method and URL
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("connection refused: is `weir control` running on %s? (--server or WEIR_SERVER): %w", c.BaseURL, err)
	}
	return fmt.Errorf("no answer from %s (--server or WEIR_SERVER): %w", c.BaseURL, err)
}

// errorMessage takes the message out of an answer, or makes do with its status
// where something other than a control plane answers.
func errorMessage(status string, answer []byte) string {
	var body struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(answer, &body) == nil && body.Error != "" {
		return body.Error
	}
	return "the control plane answered " + status
}
