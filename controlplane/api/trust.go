package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Trust keeps what the mesh trusts: its roots, and what was revoked. Errors are as
// for Mesh; policy.ErrExists says that a step cannot be taken as things are.
type Trust interface {
	// CA tells how the certificate authority is.
	CA() CA
	// Rotate begins a rotation of the root.
	Rotate(ctx context.Context) error
	// GoOn takes a rotation to its next stage and leaves proxies behind that have not
	// followed; it tells which.
	GoOn(ctx context.Context) ([]ProxyBehind, error)
	// Abort takes a rotation back.
	Abort(ctx context.Context) error
	// Revocations lists what is revoked, by id.
	Revocations() []policy.Revocation
	// Revoke revokes, for ttl or, if that is 0, until all that it names has ended. It
	// gives the revocation as it is stored.
	Revoke(ctx context.Context, r policy.Revocation, ttl time.Duration) (policy.Revocation, error)
	// Lift ends a revocation.
	Lift(ctx context.Context, id string) error
}

// CA is what GET /ca answers.
type CA struct {
	TrustDomain  string        `json:"trust_domain"`
	Certificates []Certified   `json:"certificates" nullable:"false" doc:"the roots, what is between them and the leaves, and the control plane's own"`
	Files        *CAFiles      `json:"files,omitempty" doc:"the files of --ca-cert; absent where the mesh's own root signs"`
	Rotation     *RotationView `json:"rotation,omitempty" doc:"the last one; absent before the first"`
	Alarm        float64       `json:"alarm" doc:"the part of its lifetime below which a certificate needs attention"`
	Sealed       bool          `json:"sealed" doc:"keys are encrypted in the store (--ca-key-encryption)"`
}

// The kinds of certificates in CA.
const (
	KindRoot         = "root"
	KindIntermediate = "intermediate"
	KindControl      = "control"
	KindLeaf         = "leaf"
)

// Certified is one certificate.
type Certified struct {
	Kind        string  `json:"kind" enum:"root,intermediate,control,leaf"`
	Name        string  `json:"name" doc:"the subject; of a leaf the proxy that has it"`
	Fingerprint string  `json:"fingerprint" doc:"SHA-256 of the public key (SubjectPublicKeyInfo), hexadecimal: as in join tokens"`
	SHA256      string  `json:"sha256" doc:"of the certificate, as openssl x509 -fingerprint -sha256 shows it without its colons"`
	Serial      string  `json:"serial" doc:"hexadecimal"`
	Begins      float64 `json:"begins" doc:"Unix seconds"`
	Expires     float64 `json:"expires" doc:"Unix seconds"`
	Signs       bool    `json:"signs" doc:"certificates are signed by it, or under it, now"`
	Trusted     bool    `json:"trusted" doc:"a root in the bundle of every proxy"`
	Attention   bool    `json:"attention" doc:"little of its lifetime is left, and nothing takes its place"`
}

// CAFiles is how the files of a certificate authority of one's own stand.
type CAFiles struct {
	Path    string `json:"path" doc:"of --ca-cert"`
	State   string `json:"state" enum:"in-force,waiting" doc:"waiting: it stands under a root that the mesh does not trust yet; weir ca rotate goes over to it"`
	Refused uint64 `json:"refused" doc:"changes of the files that were refused since the start"`
	Problem string `json:"problem,omitempty" doc:"of the last change"`
}

// RotationView is how a rotation stands.
type RotationView struct {
	Number   int           `json:"number"`
	Stage    string        `json:"stage" enum:"trust,reissue,done,aborted" doc:"trust: all proxies learn to trust the new root; reissue: the new root signs and all proxies renew; done: the old is trusted no more"`
	Old      []string      `json:"old" nullable:"false" doc:"fingerprints"`
	New      string        `json:"new" doc:"fingerprint"`
	Started  float64       `json:"started" doc:"Unix seconds"`
	Since    float64       `json:"since" doc:"Unix seconds: when the stage began"`
	Proxies  int           `json:"proxies" doc:"that are to follow"`
	Followed int           `json:"followed" doc:"that have"`
	Behind   []ProxyBehind `json:"behind" nullable:"false" doc:"those that have not, a bounded number"`
	Left     []string      `json:"left" nullable:"false" doc:"ids of proxies that were left behind by force"`
}

// ProxyBehind is a proxy that has not followed a stage.
type ProxyBehind struct {
	ProxyName
	Reason string `json:"reason"`
	Breaks string `json:"breaks" doc:"what happens to it when the rotation goes on without it"`
}

// Revocation is a certificate or an identity that is trusted no more.
type Revocation struct {
	ID          string  `json:"id"`
	Namespace   string  `json:"namespace,omitempty"`
	ServiceName string  `json:"service_name,omitempty"`
	Serial      string  `json:"serial,omitempty" doc:"hexadecimal"`
	Reason      string  `json:"reason,omitempty"`
	Since       float64 `json:"since" doc:"Unix seconds"`
	Until       float64 `json:"until" doc:"Unix seconds: it vanishes then"`
}

func viewRevocation(r *policy.Revocation) Revocation {
	return Revocation{ID: r.ID(), Namespace: r.Identity.Namespace, ServiceName: r.Identity.Name, Serial: r.Serial, Reason: r.Reason, Since: r.Since, Until: r.Until}
}

func (s *Server) getCA(context.Context, *nothing) (*output[CA], error) {
	return &output[CA]{s.Trust.CA()}, nil
}

// orderInput is an order that needs no more words: an empty object.
type orderInput struct{ Body struct{} }

func (s *Server) rotate(ctx context.Context, _ *orderInput) (*output[statusBody], error) {
	if err := s.Trust.Rotate(ctx); err != nil {
		return nil, s.answerFor("begin a rotation", err)
	}
	return &output[statusBody]{statusBody{Status: "rotation begun"}}, nil
}

func (s *Server) goOn(ctx context.Context, _ *orderInput) (*output[[]ProxyBehind], error) {
	left, err := s.Trust.GoOn(ctx)
	if err != nil {
		return nil, s.answerFor("go on with the rotation", err)
	}
	return &output[[]ProxyBehind]{append([]ProxyBehind{}, left...)}, nil
}

func (s *Server) abortRotation(ctx context.Context, _ *nothing) (*output[statusBody], error) {
	if err := s.Trust.Abort(ctx); err != nil {
		return nil, s.answerFor("abort the rotation", err)
	}
	return &output[statusBody]{statusBody{Status: "rotation taken back"}}, nil
}

func (s *Server) listRevocations(context.Context, *nothing) (*output[[]Revocation], error) {
	out := []Revocation{}
	for _, r := range s.Trust.Revocations() {
		out = append(out, viewRevocation(&r))
	}
	return &output[[]Revocation]{out}, nil
}

type revocationBody struct {
	Namespace   *string  `json:"namespace,omitempty" required:"false"`
	ServiceName *string  `json:"service_name,omitempty" required:"false" doc:"all certificates and join tokens of this service; or else serial"`
	Serial      *string  `json:"serial,omitempty" required:"false" doc:"one certificate, in hexadecimal, and the join token that it was got by"`
	TTL         *float64 `json:"ttl,omitempty" required:"false" doc:"seconds; left out, until all that is revoked has ended by itself"`
	Reason      *string  `json:"reason,omitempty" required:"false"`
}

type revocationInput struct{ Body revocationBody }

// maxRevocation bounds a revocation in seconds: the longest life of a join token.
const maxRevocation = 365 * 24 * 3600.0

func (s *Server) revoke(ctx context.Context, in *revocationInput) (*output[Revocation], error) {
	b := &in.Body
	r := policy.Revocation{}
	override(&r.Identity.Namespace, b.Namespace)
	override(&r.Identity.Name, b.ServiceName)
	override(&r.Serial, b.Serial)
	override(&r.Reason, b.Reason)
	if r.Serial != "" {
		serial, err := policy.ParseSerial(r.Serial)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "body.serial: %v", err)
		}
		r.Serial = serial
	}
	var ttl time.Duration
	if v := b.TTL; v != nil {
		if !(*v >= 1 && *v <= maxRevocation) {
			return nil, refuse(http.StatusBadRequest, "body.ttl: %v s is not in 1..%d s", *v, int64(maxRevocation))
		}
		ttl = time.Duration(*v * float64(time.Second))
	}
	if err := badRequest("body", r.Validate()); err != nil {
		return nil, err
	}
	stored, err := s.Trust.Revoke(ctx, r, ttl)
	if err != nil {
		return nil, s.answerFor("revoke", err)
	}
	return &output[Revocation]{viewRevocation(&stored)}, nil
}

type revocationPath struct {
	RevocationID string `path:"revocation_id"`
}

func (s *Server) liftRevocation(ctx context.Context, in *revocationPath) (*output[statusBody], error) {
	if err := s.Trust.Lift(ctx, in.RevocationID); err != nil {
		return nil, s.answerFor("lift the revocation", err)
	}
	return &output[statusBody]{statusBody{Status: "revocation lifted"}}, nil
}

// CA tells how the certificate authority is.
func (c *Client) CA(ctx context.Context) (CA, error) { return get[CA](ctx, c, "/ca") }

// Rotate begins a rotation of the root.
func (c *Client) Rotate(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodPost, "/ca/rotation", struct{}{}, nil)
	return err
}

// GoOn takes a rotation to its next stage without the proxies that have not
// followed, and lists those.
func (c *Client) GoOn(ctx context.Context) (left []ProxyBehind, err error) {
	_, err = c.call(ctx, http.MethodPost, "/ca/rotation/force", struct{}{}, &left)
	return left, err
}

// AbortRotation takes a rotation back.
func (c *Client) AbortRotation(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodDelete, "/ca/rotation", nil, nil)
	return err
}

// Revocations lists what is revoked.
func (c *Client) Revocations(ctx context.Context) ([]Revocation, error) {
	return get[[]Revocation](ctx, c, "/revocations")
}

// Revoke revokes an identity or a certificate, for ttl or, if that is 0, until all
// that it names has ended by itself.
func (c *Client) Revoke(ctx context.Context, r policy.Revocation, ttl time.Duration) (out Revocation, err error) {
	body := revocationBody{Namespace: given(r.Identity.Namespace), ServiceName: given(r.Identity.Name), Serial: given(r.Serial), Reason: given(r.Reason)}
	if ttl > 0 {
		body.TTL = given(ttl.Seconds())
	}
	_, err = c.call(ctx, http.MethodPost, "/revocations", body, &out)
	return out, err
}

// Lift ends a revocation, by its id.
func (c *Client) Lift(ctx context.Context, id string) error {
	_, err := c.call(ctx, http.MethodDelete, "/revocations/"+url.PathEscape(id), nil, nil)
	return err
}
