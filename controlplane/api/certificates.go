package api

import (
	"context"
	"encoding/pem"
	"net/http"

	"github.com/weir-mesh/weir/policy"
)

const pemType = "application/x-pem-file"

type rootOutput struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (s *Server) rootCertificate(context.Context, *nothing) (*rootOutput, error) {
	return &rootOutput{ContentType: pemType, Body: s.Authority.RootPEM()}, nil
}

type issueInput struct {
	Body issueBody
}

func (s *Server) issueCertificate(_ context.Context, in *issueInput) (*output[Certificate], error) {
	b := &in.Body
	problems := checkName(b.Namespace, b.ServiceName, "service_name")
	if b.CSR != nil {
		if block, _ := pem.Decode([]byte(*b.CSR)); block == nil {
			problems = append(problems, policy.Problem{Path: "csr", Message: "is not PEM (-----BEGIN CERTIFICATE REQUEST-----)"})
		}
	}
	if err := badRequest("body", problems); err != nil {
		return nil, err
	}
	name := policy.ServiceName{Namespace: b.Namespace, Name: b.ServiceName}
	out := Certificate{CACertificate: string(s.Authority.RootPEM())}
	if b.CSR != nil {
		chain, err := s.Authority.IssueForCSR(name, []byte(*b.CSR))
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "body.csr: %v", err)
		}
		out.Certificate = string(chain)
		return &output[Certificate]{out}, nil
	}
	key, chain, err := s.Authority.IssueWithKey(name)
	if err != nil {
		return nil, s.answerFor("issue the certificate", err)
	}
	out.PrivateKey, out.Certificate = string(key), string(chain)
	return &output[Certificate]{out}, nil
}
