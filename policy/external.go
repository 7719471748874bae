package policy

import (
	"crypto/x509"
	"net/netip"
	"strings"
)

// External is what an endpoint outside the mesh has in the place of an address:
// a name, which the callers' proxies look up themselves, and how they speak to
// it.
type External struct {
	Host string `json:"host,omitempty"`
	// TLS is TLSOriginate where the callers' proxies speak TLS to it, for apps that
	// speak plain text; "" passes on what the app says.
	TLS        string `json:"tls,omitempty"`
	ServerName string `json:"server_name,omitempty"` // in the certificate and as SNI; "" is Host
	CA         string `json:"ca,omitempty"`          // PEM, whom to trust; "" is the system's roots
}

// TLSOriginate is the one value of External.TLS.
const TLSOriginate = "originate"

// TLSName is the name that the certificate is to be for.
func (e *External) TLSName() string {
	if e.ServerName != "" {
		return e.ServerName
	}
	return e.Host
}

func (e *External) validate(p *Problems) {
	if e.Host == "" {
		if *e != (External{}) {
			p.add("host", "is missing: tls, server_name and ca are of an endpoint outside the mesh, which has a host and no ip")
		}
		return
	}
	checkDNSName(p, "host", e.Host)
	if e.TLS != "" {
		p.oneOf("tls", e.TLS, TLSOriginate)
	} else if e.ServerName != "" || e.CA != "" {
		p.add("tls", `is missing: server_name and ca are for tls: %s`, TLSOriginate)
	}
	if e.ServerName != "" {
		checkDNSName(p, "server_name", e.ServerName)
	}
	if len(e.CA) > 64<<10 {
		p.add("ca", "%d bytes are more than 64 KiB", len(e.CA))
	} else if e.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(e.CA)) {
		p.add("ca", "holds no certificate in PEM")
	}
}

// checkDNSName accepts a name of DNS (RFC 1123 section 2.1) in lower case.
func checkDNSName(p *Problems, path, host string) {
	_, err := netip.ParseAddr(host)
	switch {
	case err == nil:
		p.add(path, "%q is an address; a name is meant", host)
		return
	case len(host) > 253:
		p.add(path, "%q is longer than 253 characters", host)
		return
	}
	for label := range strings.SplitSeq(host, ".") {
		if err := checkLabel("label", label); err != nil {
			p.add(path, "%q is not a host name: %v", host, err)
			return
		}
	}
}
